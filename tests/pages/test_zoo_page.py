"""docs/zoo.md says what conf/ has."""

from __future__ import annotations

import pytest

from pages import zoo_page
from zoo.families import family as families


def without_measurement(text: str) -> list[str]:
    """The page's lines, what is measured left out."""
    kept = []
    for line in text.split("## Families")[1].splitlines():
        kept.append(line.rpartition(" | ")[0] if "e-0" in line else line)
    return [line for line in kept if not line.startswith("float32")]


@pytest.mark.slow
def test_the_page_is_what_its_command_writes():
    written = zoo_page.PAGE.read_text(encoding="utf-8")
    there = zoo_page.stated(written)
    measured = {name: there.get(families.read_family(name).model_types[0], "1e-06") for name in families.family_names()}
    again = zoo_page.page(measured, "")
    assert without_measurement(written) == without_measurement(again), "docs/zoo.md is old (make docs)"


def test_every_family_is_measured_and_near_its_reference():
    measured = zoo_page.stated(zoo_page.PAGE.read_text(encoding="utf-8"))
    assert set(measured) == {families.read_family(name).model_types[0] for name in families.family_names()}
    assert {name: value for name, value in measured.items() if not float(value) <= 5e-5} == {}  # to one digit


def test_the_readme_counts_the_families_that_there_are():
    readme = (zoo_page.PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f" {len(families.family_names())} published families " in readme
