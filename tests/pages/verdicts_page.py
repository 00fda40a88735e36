"""Writes the table of docs/verdicts.md: what the verdicts do in simulated experiments.
`python tests/pages verdicts` simulates 2,000 experiments of each design in three minutes of a core;
tests/analysis/verdict does fewer."""

from __future__ import annotations

import sys
from pathlib import Path

from support.simulations import list_rates
from zoo.report import format_markdown

PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"

START, END = "<!-- simulated -->\n", "<!-- /simulated -->"
"""The marks around the table in the page."""


def make_table(experiments: int) -> str:
    """The table of all designs, a row each."""
    rows = []
    for each in list_rates(experiments):
        rows.append([each.what, f"{each.share:.1%}", "" if each.nominal is None else f"{each.nominal:.1%}"])
        print(*rows[-1], sep="  ", flush=True)
    header = ("in simulated experiments", "share", "nominal")
    return "\n".join([f"{experiments:,} experiments a row.", "", format_markdown(header, rows), ""])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    table = make_table(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    PAGE.write_text(f"{before}{START}{table}{END}{rest.partition(END)[2]}", encoding="utf-8")
