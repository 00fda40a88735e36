"""Make tables of several columns: for the terminal with rich, as CSV, and as GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from zoo.report.wrapping import measure_screen

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def make_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Table:
    """Make a rich table; `right` are the columns to align right. A cell that is too wide is folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(header):
        made.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def fit_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], expendable: Sequence[str], idle: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """Drop the `idle` columns, then `expendable` ones in order until the table fits; return header and rows."""
    kept = [name for name in header if name not in idle]
    widths = dict(zip(header, (max(map(len, column)) for column in zip(header, *rows, strict=True)), strict=True))
    for name in expendable:
        if sum(widths[each] + 2 for each in kept) <= measure_screen():
            break
        kept.remove(name)
    return kept, [[row[header.index(name)] for name in kept] for row in rows]


def print_tables(*things: RenderableType) -> None:
    """Print rich objects to stdout, at the terminal's width, or 80 columns into a pipe."""
    from zoo.report.console import make_console

    console = make_console()
    for thing in things:
        console.print(thing)


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
