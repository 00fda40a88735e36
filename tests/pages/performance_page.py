"""Writes the sections of docs/performance.md that come from the reports in docs/bench, one for each instruction set.
`zoo bench decode --against hf,ctranslate2 --out docs/bench` measures; `python tests/pages performance` writes."""

from __future__ import annotations

from pathlib import Path

from pages.bench_page import read_reports, replace_section

DOCS = Path(__file__).parents[2] / "docs"
PAGE, REPORTS = DOCS / "performance.md", DOCS / "bench"


def write_page(page: str) -> str:
    """Write the page with the section of each instruction set that there are reports of."""
    for isa, reports in read_reports(REPORTS).items():
        page = replace_section(page, isa, reports)
    return page


if __name__ == "__main__":
    PAGE.write_text(write_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
