"""Make tables of several columns: for the terminal with rich, as CSV, and as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.report.wrapping import measure_screen

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


class TextTable(NamedTuple):
    """A table of texts, for the terminal (`print_tables`) and for pages. `right` are the columns to align right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()


WORDY = 32
"""The most characters that `fit_columns` counts for a column of several words: `make_table` wraps wider cells."""
PIECE = re.compile(r"[^=,/]*[=,/]?")
"""Matches the pieces of a word. A word too long for its column is broken between them."""


def make_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Table:
    """Make a rich table; `right` are the columns to align right. On a narrow screen, cells are wrapped between words,
    and a word longer than its column is broken after `=`, a comma or a slash."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows = [*rows]
    widths = _shrink_columns(header, rows, right)
    for index, (name, width) in enumerate(zip(header, widths, strict=True)):
        made.add_column(name, justify="right" if index in right else "left", overflow="fold", width=width)
    for row in rows:
        cells = zip(row, widths, strict=True)
        made.add_row(*(Text(cell if width is None else _break_words(cell, width)) for cell, width in cells))
    return made


def _shrink_columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> Sequence[int | None]:
    """Choose the columns' widths for a narrow screen; None for each if the rows fit. The widest columns shrink first,
    to their longest words, then the right-aligned numbers; if that is not enough, words are broken."""
    columns = [*zip(header, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    words = [_longest_word(column) for column in columns]
    numbers = [max(words[at], *map(len, column[1:])) if at in right else words[at] for at, column in enumerate(columns)]
    excess = sum(widths) + 2 * len(widths) - measure_screen()
    if excess <= 0:
        return [None] * len(columns)
    for floors in (numbers, words, [1] * len(columns)):
        while excess > 0 and (loose := [at for at, width in enumerate(widths) if width > floors[at]]):
            widths[max(loose, key=widths.__getitem__)] -= 1
            excess -= 1
    return widths


def _longest_word(cells: Sequence[str]) -> int:
    return max(len(word) for cell in cells for word in ["", *cell.split()])


def _break_words(text: str, width: int) -> str:
    """Break the words longer than `width` into lines between their pieces. A piece that is still too long stays."""
    words = []
    for word in text.split(" "):
        lines = [""]
        for piece in PIECE.findall(word) if len(word) > width else [word]:
            if lines[-1] and len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
        words.append("\n".join(lines))
    return " ".join(words)


def fit_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], expendable: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Drop `expendable` columns in order until the table fits; return header and rows. A column of several words counts
    with at most WORDY characters or its longest word, because `make_table` wraps it."""
    kept = list(header)
    widths = {
        name: min(max(map(len, column)), max(_longest_word(column), WORDY))
        for name, column in zip(header, zip(header, *rows, strict=True), strict=True)
    }
    for name in expendable:
        if sum(widths[each] + 2 for each in kept) <= measure_screen():
            break
        kept = [each for each in kept if each != name]
    return kept, [[row[header.index(name)] for name in kept] for row in rows]


def print_tables(*things: RenderableType | TextTable) -> None:
    """Print tables, texts and other rich objects to stdout, at the terminal's width, or 80 columns into a pipe."""
    from zoo.report.console import make_console

    console = make_console()
    for thing in things:
        console.print(make_table(*thing) if isinstance(thing, TextTable) else thing)


def format_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format rows as comma-separated exact values; a missing value is empty."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def format_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Format rows as a table in GitHub's Markdown; `right` are the columns to align right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---:" if index in right else "---" for index in range(len(header))]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def drop_empty(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Drop the columns of a table that have no figure."""
    kept = [at for at in range(len(header)) if any(row[at] for row in rows)]
    return [header[at] for at in kept], [[row[at] for at in kept] for row in rows]
