"""Text in aligned columns, without rich: importing that is a tenth of what `zoo stats` takes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

TextRow = tuple[str, ...]
"""The cells of a line."""


def as_json(figures: Any) -> str:
    """Plain data as indented JSON."""
    return json.dumps(figures, indent=2)


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows in aligned columns; on a terminal a line ends where the screen does.

    A row of which only the first cell holds anything is a heading, and takes no part in the widths.
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
        width = screen()
        lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join(lines)


def screen() -> int:
    """The columns of the terminal, or 80 into a pipe; COLUMNS says otherwise."""
    return shutil.get_terminal_size((80, 24)).columns


def bold(text: str) -> str:
    """Bold on a terminal, plain in a pipe or where NO_COLOR is set."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def wrapped(text: str, indent: int, below: int | None = None, width: int = 80) -> str:
    """A text in lines of at most `width`, indented, those after the first by `below`."""
    import textwrap

    rest = " " * (indent if below is None else below)
    return textwrap.fill(text, width, initial_indent=" " * indent, subsequent_indent=rest)
