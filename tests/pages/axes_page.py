"""Writes the second part of docs/axes.md from the code: every choice of every axis with its paper, its cost and who has
it, and every optional field with the override that switches it on. What stands before its heading is written by hand.
`make docs` runs it; test_axes.py holds the page against it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pages.axis_switches import Switch, list_switches
from zoo.analysis.axes import describe_axis, list_axes
from zoo.grammar import vocabulary
from zoo.report.grammar_pages import HEAD, LEGEND, list_rows

PAGE = Path(__file__).parents[2] / "docs" / "axes.md"
HEADING = "## Every choice"
OPTIONS = """\
## What can be switched on

Every field that is off unless stated, with an override that switches it on in the small model beside it (`zoo stats
MODEL OVERRIDE`, `zoo train model=MODEL model.OVERRIDE`). Where there is a usual choice, `true` does too. From the code.
"""
SWITCHED = ("field", "switch on", "in", "of", "what it is")
SHOWN = 4
"""Maximum choices in a cell."""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """Write the whole page."""
    by_hand = PAGE.read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
    pages = " · ".join(f"[{axis}](choices/{axis}.md)" for axis in vocabulary.list_axes())
    parts = [f"{by_hand}\n", f"{HEADING}\n\nFrom the code, as `zoo list --axis attention` prints it. {LEGEND}\n"]
    parts += [f"Fields, with types, defaults and the models that set them: {pages}\n"]
    parts += [f"### {axis}\n\n{table(HEAD, list_rows(describe_axis(axis)))}" for axis in list_axes()]
    return "\n".join(
        [*parts, OPTIONS, *(f"### {axis}\n\n{table(SWITCHED, rows)}" for axis, rows in switched().items())]
    )


def switched() -> dict[str, list[tuple[str, ...]]]:
    """List a row for each optional field, by axis."""
    found = {f"{axis}: options": [_row(each) for each in list_switches(axis)] for axis in vocabulary.list_axes()}
    return {axis: rows for axis, rows in found.items() if rows}


def _row(switch: Switch) -> tuple[str, ...]:
    example = switch.example
    more = f" +{len(switch.choices) - SHOWN}" if len(switch.choices) > SHOWN else ""
    where = shlex.join([example.target, *example.overrides])
    on = shlex.join([example.override])
    return f"`{switch.field}`", f"`{on}`", f"`{where}`", ", ".join(switch.choices[:SHOWN]) + more, escape(switch.what)


def escape(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
