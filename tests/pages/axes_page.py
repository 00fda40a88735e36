"""Writes the second part of docs/axes.md: every choice of every axis with its paper, its cost and who has it, from the
code. What stands before its heading is written by hand. `make docs` runs it; test_axes.py holds the page against it."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo.analysis.axes import describe_axis, list_axes
from zoo.report.axis_table import HEAD, LEGEND, list_rows

PAGE = Path(__file__).parents[2] / "docs" / "axes.md"
HEADING = "## Every choice"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """Write the whole page."""
    by_hand = PAGE.read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
    parts = [f"{by_hand}\n", f"{HEADING}\n\nFrom the code, as `zoo list --axis attention` prints it. {LEGEND}\n"]
    parts += [f"### {axis}\n\n{table(HEAD, list_rows(describe_axis(axis)))}" for axis in list_axes()]
    return "\n".join(parts)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
