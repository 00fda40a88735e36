"""Several models in one table, two of them side by side, and the points of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.analysis.compare import merge_orders
from zoo.report.figures import BRIEF, SECTIONS, Figure, figures, idle, twice
from zoo.report.tables import rich_table
from zoo.report.text import screen
from zoo.report.units import change, readable

LABEL, PATH = 34, 44  # columns that the names of figures may take, and dotted paths
LEAST, CELL = 9, 14  # columns that a model's figures need, and may take


def model_tables(labels: Sequence[str], priced: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A row a figure, a column a model; with two of them the difference as well. As many tables as the width needs."""
    room = max(2, (screen() - LABEL) // (max(LEAST, min(CELL, max(map(len, labels)))) + 2))
    parts = [slice(at, at + room) for at in range(0, len(labels), room)]
    tables = [_table(*model_rows(labels[part], priced[part], all_of=priced)) for part in parts]
    return [said_of_all(priced), *tables]


def said_of_all(priced: Sequence[Mapping[str, Any]]) -> str:
    """What all figures are of, in one line: the context, the sequences, the dtype; a context that models do not share
    is each one's own."""
    tokens = {figures["kv_cache"]["tokens"] for figures in priced}
    cache = priced[0]["kv_cache"]
    context = f"{tokens.pop():,} tokens" if len(tokens) == 1 else "each model's max_seq_len"
    return f"context {context}, batch {cache['batch']:,}, KV cache in {cache['dtype']}"


def model_rows(
    labels: Sequence[str],
    priced: Sequence[Mapping[str, Any]],
    all_of: Sequence[Mapping[str, Any]] | None = None,
    *,
    differing: bool = False,
) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of such a table, for the figures that any of `all_of` has.

    With `differing` those are left out that are the same in all, and so are the titles of sections without any.
    """
    all_of = priced if all_of is None else all_of
    two = len(all_of) == 2
    rows: list[list[str]] = []
    for section in merge_orders(all_of):
        lines = [] if section == "rules_of_thumb" else _lines(section, all_of, priced)  # of use for one model alone
        if differing:
            lines = [line for line in lines if line[1][0] != line[1][-1]]
        if lines:
            rows.append([SECTIONS.get(section, section), *[""] * (len(labels) + 2 * two)])
        for figure, values in lines:
            cells = ["" if value is None else readable(value, figure.unit, short=True) for value in values]
            name = "  " * (figure.depth + 1) + BRIEF.get(figure.path, figure.label)
            rows.append([name, *cells, *(_difference(figure.unit, *values) if two else [])])
    return ["", *labels, *(["difference", ""] if two else [])], rows


def _lines(
    section: str, all_of: Sequence[Mapping[str, Any]], priced: Sequence[Mapping[str, Any]]
) -> list[tuple[Figure, list[Any]]]:
    """The figures of a section that any model has, with what these models have there."""
    every = [{figure.path: figure for figure in figures({section: each.get(section)})} for each in all_of]
    shown = [{figure.path: figure.value for figure in figures({section: each.get(section)})} for each in priced]
    lines = []
    for path in merge_orders(every):
        found = [each[path] for each in every if path in each]
        holders = [each for each, listed in zip(all_of, every, strict=True) if path in listed]
        if path in TITLED or any(map(_long, found)):
            continue
        if path == "kv_cache.bytes" or not all(
            idle(figure) or twice(figure, each) for figure, each in zip(found, holders, strict=True)
        ):
            lines.append((found[0], [each.get(path) for each in shown]))
    return lines


TITLED = frozenset({"kv_cache.tokens", "kv_cache.batch", "kv_cache.dtype", "kv_cache.engine"})


def _long(figure: Figure) -> bool:
    return isinstance(figure.value, str) and len(figure.value) > CELL


def _difference(unit: str, a: Any, b: Any) -> list[str]:
    """The second less the first, absolute and relative; a component that one has not is zero in it."""
    numbers = [value for value in (a, b) if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers or len(numbers) + (a is None) + (b is None) < 2:
        return ["" if a == b else "differs", ""]
    delta = (b or 0) - (a or 0)
    if not delta:
        return ["=", ""]
    shown = ("+" if delta > 0 else "-") + readable(abs(delta), unit, short=True)
    return [shown, change(delta / a) if a else ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A rich table of cells as wide as they may be, its first column cut to what is left of the screen."""
    header = [header[0], *(_fitted(cell, CELL) for cell in header[1:])]
    rows = [[row[0], *(_fitted(cell, CELL) for cell in row[1:])] for row in rows]
    others = sum(2 + max(len(row[i]) for row in [header, *rows]) for i in range(1, len(header)))
    rows = [[_fitted(row[0], max(LEAST, screen() - others - 3)), *row[1:]] for row in rows]
    return rich_table("", header, rows, right=range(1, len(header)))


def _fitted(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# ---------------------------------------------------------------- two models


def diff_tables(labels: Sequence[str], found: Any, priced: Sequence[Any], *, everything: bool = False) -> list[Any]:
    """The fields of the architecture that differ, then the figures that do (or all of them)."""
    header, rows = model_rows(labels, priced, differing=not everything)
    names = [_fitted(label, CELL) for label in labels]
    room = max(CELL, (screen() - PATH - 6) // 2)
    fields = [[_tail(row[0], PATH), *(_fitted(cell, room) for cell in row[1:])] for row in field_rows(found)]
    tables = [rich_table("", ["architecture", *names], fields)] if fields else []
    return [*tables, said_of_all(priced), _table(header, rows)] if rows else tables


def field_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for each field of the architecture that differs: its dotted path and both values."""
    return [[path, *(_field(row[side]) for side in "ab")] for path, row in found["architecture"].items()]


def _field(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _tail(path: str, width: int) -> str:
    """A dotted path, its beginning left out where it is too long: the end says what it is."""
    return path if len(path) <= width else "…" + path[-(width - 1) :]


# ---------------------------------------------------------------- sweeps


def sweep_table(
    header: Sequence[str], keys: int, rows: Sequence[Sequence[Any]], units: Sequence[str], reasons: Sequence[str | None]
) -> tuple[Any, list[str]]:
    """A row a point: the first `keys` cells are its values, the others its figures. Gives the table and the reasons of
    the points that were refused, each with the mark that stands in their rows.

    Where the screen is too narrow, units stand in the header alone.
    """
    marks = {reason: f"({number})" for number, reason in enumerate(dict.fromkeys(filter(None, reasons)), 1)}
    shown = []
    for row, reason in zip(rows, reasons, strict=True):
        told = [readable(value, unit, short=True) for value, unit in zip(row[keys:], units, strict=True)]
        refused = [f"refused {marks[reason]}", *([""] * (len(told) - 1))] if reason else told
        shown.append([*map(str, row[:keys]), *refused])
    widths = [max(map(len, cells)) for cells in zip(header, *shown, strict=True)]
    if sum(widths) + 2 * len(widths) > screen():
        shown = [[*row[:keys], *map(_bare, row[keys:], units)] for row in shown]
        header = [*header[:keys], *(_named(*each) for each in zip(header[keys:], units, strict=True))]
    table = rich_table("", header, shown, right=range(keys, len(header)))
    return table, [f"{mark} {reason}" for reason, mark in marks.items()]


def _bare(cell: str, unit: str) -> str:
    """A readable figure without its unit, which the header has: `4.81 G`."""
    return cell.removesuffix(unit).rstrip() if unit else cell


def _named(name: str, unit: str) -> str:
    return name if unit in ("", "params") else f"{name} {unit}"
