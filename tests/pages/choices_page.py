"""Writes docs/choices/, a page an axis with a section a choice, and docs/model.schema.json, from the Specs. `make docs`
runs it; test_fields.py and test_schema.py hold the files against it."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo.analysis.grammar_names import describe_page, key_sentence
from zoo.grammar import vocabulary
from zoo.report.grammar_pages import write_choices

DOCS = Path(__file__).parents[2] / "docs"
FOLDER, SCHEMA = DOCS / "choices", DOCS / "model.schema.json"


def page(axis: str) -> str:
    """Write the page of an axis."""
    what = key_sentence(axis)
    return write_choices(axis, what, [describe_page(each) for each in vocabulary.read_choices(axis).values()])


def main() -> None:
    from zoo.cli import run

    FOLDER.mkdir(exist_ok=True)
    for axis in vocabulary.list_axes():
        (FOLDER / f"{axis}.md").write_text(page(axis), encoding="utf-8")
    run(["schema", "--out", str(SCHEMA)])
    print(f"written: {FOLDER.name}/", file=sys.stderr)


if __name__ == "__main__":
    main()
