"""Align and wrap text without rich, whose import would take a tenth of the time of `zoo stats`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence

TextRow = tuple[str, ...]
"""The cells of one line."""


def format_json(figures: object) -> str:
    """Format plain data as indented JSON."""
    return json.dumps(figures, indent=2)


def align_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Align rows in columns. On a terminal, a line longer than the screen goes on below its last column.

    A row with text only in its first cell is a heading; its width does not count.
    """
    full = [row for row in rows if any(row[1:])]
    widths = [max((len(row[i]) for row in full), default=0) for i in range(len(rows[0]) if rows else 0)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  ".join(cells) if any(row[1:]) else row[0]).rstrip())
    if sys.stdout.isatty():
        screen = measure_screen()
        below = min(sum(widths[:-1]) + 2 * len(widths[:-1]), screen // 2 + 16)
        lines = [line if len(line) <= screen else wrap_text(line, 0, below, screen, hyphens=False) for line in lines]
    return "\n".join(lines)


def measure_screen() -> int:
    """Return the terminal's width in columns: COLUMNS if it is set, 80 for a pipe."""
    return shutil.get_terminal_size((80, 24)).columns


def make_bold(text: str) -> str:
    """Make text bold on a terminal; leave it plain in a pipe and with NO_COLOR. Uses marks that `zoo.cli.output` turns
    into terminal codes, because that module escapes codes in a text."""
    marks = getattr(sys.stdout, "bold", None)
    if marks is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return text.join(marks)


def wrap_text(text: str, indent: int, below: int | None = None, width: int = 80, *, hyphens: bool = True) -> str:
    """Wrap a text into lines of at most `width` characters, the first indented by `indent`, the rest by `below`. With
    `hyphens`, lines may also break after a hyphen."""
    import textwrap

    first, rest = " " * indent, " " * (indent if below is None else below)
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=hyphens)
