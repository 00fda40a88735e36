"""Format tables of several models, of the differences between two, and of a sweep."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.analysis.compare import merge_orders
from zoo.report.figures import BRIEF, SECTIONS, Figure, is_hidden, is_repeated, list_figures
from zoo.report.tables import make_table
from zoo.report.wrapping import measure_screen
from zoo.units import format_change, format_figure

LABEL, PATH = 34, 44  # maximum widths of a figure's label and of a dotted path
LEAST, CELL = 9, 14  # minimum and maximum width of a model's column


def make_model_tables(labels: Sequence[str], priced: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Make tables with a row per figure and a column per model; two models also get a column of differences. Models
    that do not fit the screen are put into further tables."""
    room = max(2, (measure_screen() - LABEL) // (max(LEAST, min(CELL, max(map(len, labels)))) + 2))
    parts = [slice(at, at + room) for at in range(0, len(labels), room)]
    tables = [_table(*list_model_rows(labels[part], priced, part)) for part in parts]
    return [format_setting(priced), *tables]


def format_setting(priced: Sequence[Mapping[str, Any]]) -> str:
    """Format the settings of all figures as one line: context, batch and the cache's dtype. Models without a shared
    context are priced at their max_seq_len."""
    tokens = {figures["kv_cache"]["tokens"] for figures in priced}
    cache = priced[0]["kv_cache"]
    context = f"{tokens.pop():,} tokens" if len(tokens) == 1 else "each model's max_seq_len"
    return f"context {context}, batch {cache['batch']:,}, KV cache in {cache['dtype']}"


def list_model_rows(
    labels: Sequence[str],
    priced: Sequence[Mapping[str, Any]],
    part: slice = slice(None),
    *,
    differing: bool = False,
) -> tuple[list[str], list[list[str]]]:
    """Make the header and the rows of a table of models, for the figures that any of them has. With a `part` the table
    has these models alone; `labels` are theirs.

    `differing` leaves out figures that are the same in the first and the last model, and sections without any
    difference.
    """
    two = len(priced) == 2
    rows: list[list[str]] = []
    for section in merge_orders(priced):
        lines = [] if section == "rules_of_thumb" else _lines(section, priced, part)  # shown for a single model only
        if differing:
            lines = [line for line in lines if line[1][0] != line[1][-1]]
        if lines:
            rows.append([SECTIONS.get(section, section), *[""] * (len(labels) + 2 * two)])
        for figure, values in lines:
            cells = ["" if value is None else format_figure(value, figure.unit, short=True) for value in values]
            name = "  " * (figure.depth + 1) + BRIEF.get(figure.path, figure.label)
            rows.append([name, *cells, *(_difference(figure.unit, *values) if two else [])])
    return ["", *labels, *(["difference", ""] if two else [])], rows


def _lines(section: str, priced: Sequence[Mapping[str, Any]], part: slice) -> list[tuple[Figure, list[Any]]]:
    """List the figures of a section that any model has, each with its values in the models of `part`."""
    every = [{figure.path: figure for figure in list_figures({section: each.get(section)})} for each in priced]
    lines = []
    for path in merge_orders(every):
        found = [(listed[path], each) for listed, each in zip(every, priced, strict=True) if path in listed]
        if any(isinstance(figure.value, str) and len(figure.value) > CELL for figure, _ in found):
            continue
        if path == "kv_cache.bytes" or not all(
            is_hidden(figure) or is_repeated(figure, each) for figure, each in found
        ):
            lines.append((found[0][0], [each[path].value if path in each else None for each in every[part]]))
    return lines


def _difference(unit: str, a: Any, b: Any) -> list[str]:
    """Format the second value minus the first, absolute and relative. A component that a model lacks counts as zero."""
    numbers = [value for value in (a, b) if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers or len(numbers) + (a is None) + (b is None) < 2:
        return ["" if a == b else "differs", ""]
    delta = (b or 0) - (a or 0)
    if not delta:
        return ["=", ""]
    shown = ("+" if delta > 0 else "-") + format_figure(abs(delta), unit, short=True)
    return [shown, format_change(delta / a) if a else ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], room: int = CELL) -> Any:
    """Make a rich table. Cells are cut to `room` characters, and the first column to the rest of the screen's width."""
    header = [header[0], *(_fitted(cell, room) for cell in header[1:])]
    rows = [[row[0], *(_fitted(cell, room) for cell in row[1:])] for row in rows]
    others = sum(2 + max(len(row[i]) for row in [header, *rows]) for i in range(1, len(header)))
    rows = [[_fitted(row[0], max(LEAST, measure_screen() - others - 3)), *row[1:]] for row in rows]
    return make_table("", header, rows, right=range(1, len(header)))


def _fitted(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# ---------------------------------------------------------------- two models


def make_diff_tables(
    labels: Sequence[str], found: Mapping[str, Any], priced: Sequence[Mapping[str, Any]], *, everything: bool = False
) -> list[Any]:
    """Make tables of the architecture's fields that differ, then of the figures that differ (with `everything`, of all
    figures)."""
    header, rows = list_model_rows(labels, priced, differing=not everything)
    room = max(CELL, (measure_screen() - PATH - 6) // 2)
    names = [_fitted(label, room) for label in labels]
    fields = [[_fold(row[0], PATH), *(_fitted(cell, room) for cell in row[1:])] for row in list_field_rows(found)]
    tables = [make_table("", ["architecture", *names], fields)] if fields else []
    room = max(CELL, (measure_screen() - LABEL - 24) // 2)  # beside the difference
    return [*tables, format_setting(priced), _table(header, rows, room)] if rows else tables


def list_field_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """List one row per field of the architecture that differs: its dotted path and both values."""
    return [[path, *(_field(row[side]) for side in "ab")] for path, row in found["architecture"].items()]


def _field(value: object) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _fold(path: str, width: int) -> str:
    """Fold a long dotted path before a dot; continued lines are indented."""
    lines = [""]
    for part in re.split(r"(?=\.)", path):
        if len(lines[-1]) + len(part) > width and lines[-1].strip():
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


# ---------------------------------------------------------------- sweeps


def make_sweep_table(
    header: Sequence[str], keys: int, rows: Sequence[Sequence[Any]], units: Sequence[str], reasons: Sequence[str | None]
) -> tuple[Any, list[str]]:
    """Make a sweep's table, a row per point: the first `keys` cells are the swept values, the rest figures. Also
    returns the reason of each refused point, after the mark in the point's row.

    On a narrow screen, units are in the header only.
    """
    marks = {reason: f"({number})" for number, reason in enumerate(dict.fromkeys(filter(None, reasons)), 1)}
    shown = []
    for row, reason in zip(rows, reasons, strict=True):
        told = [format_figure(value, unit, short=True) for value, unit in zip(row[keys:], units, strict=True)]
        refused = [f"refused {marks[reason]}", *([""] * (len(told) - 1))] if reason else told
        shown.append([*map(str, row[:keys]), *refused])
    widths = [max(map(len, cells)) for cells in zip(header, *shown, strict=True)]
    if sum(widths) + 2 * len(widths) > measure_screen():
        shown = [[*row[:keys], *map(_bare, row[keys:], units)] for row in shown]
        header = [*header[:keys], *(_named(*each) for each in zip(header[keys:], units, strict=True))]
    table = make_table("", header, shown, right=range(keys, len(header)))
    return table, [f"{mark} {reason}" for reason, mark in marks.items()]


def _bare(cell: str, unit: str) -> str:
    """Cut the unit off a formatted figure, because the header has it: `4.81 GB` becomes `4.81 G`."""
    return cell.removesuffix(unit).rstrip() if unit else cell


def _named(name: str, unit: str) -> str:
    return name if unit in ("", "params") else f"{name} {unit}"
