"""Format pages on names of the grammar (`zoo.analysis.grammar_names`) for a terminal; docs/choices/ uses parts of
them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from zoo.report.wrapping import align_columns, make_bold, measure_screen, wrap_text
from zoo.units import format_change

SHOWN, VALUES = 6, 5
"""Maximum names of models in a line, and maximum values listed."""

HEAD = ("choice", "paper", "time", "per new token", "cache", "models", "families")
LEGEND = "How the choice's own cost grows with T tokens: the time of all, the time per new token, and the cache."
CELL = 3
"""Maximum names in a cell of the table of an axis."""


def format_page(page: Mapping[str, Any]) -> str:
    """Format a page for a terminal."""
    pages = {"axis": _write_axis, "choice": _write_choice, "field": _write_field, "key": _write_key}
    lines = {**pages, "setting": _write_setting}[page["page"]](page)
    also = _rows([("also", ", ".join(page["also"]))]) if "also" in page else ()
    return "\n".join([make_bold(page["name"]), *lines, *also])


def _write_axis(page: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrap(page["what"])
    if "time" in page["choices"][0]:
        yield f"\n{format_axis(page['choices'])}"
    else:
        yield ""
        for each in page["choices"]:
            yield _fill(f"{each['choice']}: {each['what']}", 2, 6)


def _write_choice(page: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrap(page["what"])
    yield from _rows(list_facts(page))
    width = max((len(each["field"]) for each in page["fields"]), default=0)
    if page["fields"]:
        yield "\nfields"
    for each in page["fields"]:
        yield _fill(f"{each['field']:<{width}}  {_join_field(each)}", 2, width + 4)
    yield ""
    yield from _rows([(whose, name_few(page[whose]) or "none") for whose in ("models", "families")])


def format_axis(found: Iterable[Mapping[str, Any]]) -> str:
    """Format the choices of an axis as a table for a terminal."""
    head, *lines = align_columns([HEAD, *list_rows(found)]).splitlines()
    return "\n".join([make_bold(head), *lines, LEGEND])


def list_rows(found: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """List a row of texts per choice, with the columns of HEAD."""
    return [
        (
            *(each["choice"], each["source"], each["time"], each["token"], each["cache"]),
            *(name_few(each[whose], CELL, " +{}") for whose in ("models", "families")),
        )
        for each in found
    ]


def list_facts(page: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if page["kind"] != page["name"].rpartition(".")[2]:
        yield "kind", page["kind"]
    if page["source"]:
        yield "paper", page["source"]
    if page.get("looks"):
        yield "direction", page["looks"]
    if "time" in page:
        more = f", {page['token']} per new token, cache {page['cache']}" if page["token"] != "-" else ""
        yield "growth", f"time {page['time']}{more}"


def _join_field(row: Mapping[str, str]) -> str:
    default = row["default"] if row["default"] == "must be given" else f"default {row['default']}"
    return f"{row['what']} [{row['type']}; {default}]".strip()


def _write_field(page: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrap(page["text"])
    yield from _rows([*_list_nature(page), *_list_setters("set in", page["models"])])
    if page["key"]:
        count = len({name for names in page["stated"].values() for name in names})
        yield from _rows([("key", f"{page['key']}, which {count} models state (zoo explain {page['key']})")])
    if page["families"]:
        yield from _rows([("families", f"{len(page['families'])}: {name_few(page['families'])}")])
    yield from _write_example(page["example"])


def _write_key(page: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrap(page["text"])
    rows = [*_list_nature(page), *_list_setters("stated in", page["stated"])]
    if page["read_by"]:
        rows.append(("read by", name_few(page["read_by"])))
    yield from _rows(rows)
    yield from _write_example(page.get("example"))


def _write_setting(page: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrap(page["text"])
    yield from (_fill(line, 2, 6) for line in page["values"])
    rows = [*_list_nature(page), ("in", ", ".join(page.get("kinds", ()))), ("example", page["example"])]
    yield from _rows(row for row in rows if row[1])


def _list_nature(page: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if page.get("type"):
        yield "type", page["type"] + (f", in {page['unit']}" if page.get("unit") else "")
    if page.get("default"):
        key = page.get("key")
        yield (
            "default",
            page["default"] + (f" (the key {key} of the model fills it)" if key and key not in page["default"] else ""),
        )
    for name in ("formula", "paper"):
        if page.get(name):
            yield name, page[name]


def _list_setters(label: str, values: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield a line for each of the first VALUES values, with the models that have it, then a line that counts the other
    values."""
    if not values:
        yield label, "no packaged model"
        return
    for value, names in list(values.items())[:VALUES]:
        models = "1 model" if len(names) == 1 else f"{len(names)} models"
        yield label, f"{value} in {models}: {name_few(names)}"
        label = ""
    if len(values) > VALUES:
        yield "", f"and {len(values) - VALUES} other values"


def _write_example(example: Mapping[str, Any] | None) -> Iterator[str]:
    if example is None:
        return
    if example["refusal"]:
        yield from _rows([("alone", f"{example['model']} refuses other values: {example['refusal']}")])
        return
    yield from (
        f"{label:<10}{text}" for label, text in (("in a file", example["line"]), ("command", example["command"]))
    )
    changes = [_write_change(name, pair) for name, pair in example["figures"].items()]
    yield from _rows([("costs", f"in {example['model']}: {'; '.join(changes) or 'changes no figure'}")])


def _write_change(name: str, pair: Mapping[str, float]) -> str:
    before, after = pair["before"], pair["after"]
    share = f", {format_change((after - before) / before)}" if before else ""
    unit = " B" if name in ("cache a token", "recurrent state") else ""
    return f"{name.replace(' a token', ' per token')} {after - before:+,.0f}{unit}{share}"


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for label, text in rows:
        yield _fill(f"{label:<10}{text}", 0, 10)


def _wrap(text: str) -> Iterator[str]:
    if text:
        yield _fill(text, 0, 0)


def _fill(text: str, indent: int, below: int) -> str:
    """Wrap a text at the screen's width, without breaking names at hyphens."""
    return wrap_text(text, indent, below, min(max(measure_screen(), 60), 120), hyphens=False)


def name_few(names: Sequence[str], shown: int = SHOWN, more: str = " and {} more") -> str:
    """Name the first `shown` of some models or families, then with `more` how many others there are."""
    return ", ".join(names[:shown]) + (more.format(len(names) - shown) if len(names) > shown else "")
