"""Writes docs/choices/, a page an axis with a section a choice, and docs/model.schema.json, from the Specs. `make docs`
runs it; test_fields.py and test_schema.py hold the files against it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.analysis.grammar_names import describe_page, key_sentence
from zoo.grammar import vocabulary
from zoo.report.grammar_pages import list_facts, name_few

DOCS = Path(__file__).parents[2] / "docs"
FOLDER, SCHEMA = DOCS / "choices", DOCS / "model.schema.json"


CELL = 3
"""Maximum names of models in a cell of a table."""


def page(axis: str) -> str:
    """Write the page of an axis in Markdown: a section for each choice."""
    pages = map(describe_page, vocabulary.read_choices(axis).values())
    sections = ("".join(f"{line}\n" for line in write_section(each)) for each in pages)
    return "\n".join([f"# {axis}\n\n{key_sentence(axis)}\n", *sections])


def write_section(page: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {page['name'].rpartition('.')[2]}\n"
    yield f"{page['what']}\n"
    facts = [f"{name}: {escape(text)}" for name, text in list_facts(page)]
    facts += [f"{whose}: {name_few(page[whose])}" for whose in ("models", "families") if page[whose]]
    yield from (f"- {fact}" for fact in facts)
    if page["fields"]:
        yield "\n| field | type | default | what it is | set by |\n| --- | --- | --- | --- | --- |"
    for each in page["fields"]:
        cells = (f"`{each['field']}`", each["type"], each["default"], escape(each["what"]))
        yield f"| {' | '.join([*cells, name_few(each['models'], CELL)])} |"


def escape(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    from zoo.cli import run

    FOLDER.mkdir(exist_ok=True)
    for axis in vocabulary.list_axes():
        (FOLDER / f"{axis}.md").write_text(page(axis), encoding="utf-8")
    run(["schema", "--out", str(SCHEMA)])
    print(f"written: {FOLDER.name}/", file=sys.stderr)


if __name__ == "__main__":
    main()
