"""docs/zoo.md says what conf/ has."""

from __future__ import annotations

import pytest

from pages import zoo_page
from zoo.families import family as families


@pytest.mark.slow
def test_the_page_is_what_its_command_writes():
    written = zoo_page.PAGE.read_text(encoding="utf-8")
    assert written == zoo_page.page(**zoo_page.read_measured()), "docs/zoo.md is old (make docs)"


def test_every_family_is_measured_and_near_its_reference():
    measured = zoo_page.read_measured()["difference"]
    assert set(measured) == set(families.family_names())
    assert {name: value for name, value in measured.items() if not float(value) <= 5e-5} == {}  # to one digit


def test_the_readme_counts_the_families_that_there_are():
    readme = (zoo_page.PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert f" {len(families.family_names())} published families " in readme
