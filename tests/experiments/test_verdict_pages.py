"""What `zoo explain` says of the words of verdicts, experiments and ladders."""

import json
import re
from pathlib import Path

import pytest

from zoo.cli import run
from zoo.experiments.experiment import Experiment

DOCS = Path(__file__).parents[2] / "docs"


def explained(capsys, name):
    assert run(["explain", name, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_word_that_the_pages_define_leads_to_its_page(capsys):
    verdicts, ladders = (
        re.findall(r"\*\*(\w+)\*\*", (DOCS / page).read_text(encoding="utf-8").split(heading)[1].split("\n## ")[0])
        for page, heading in (("verdicts.md", "## From runs"), ("experiments.md", "## Train a ladder"))
    )
    pages = {"Equivalent": "verdict", "Inconclusive": "verdict", "speedup": "speedup"}
    assert pages.keys() <= {*verdicts, *ladders}
    for word, page in {**pages, "ladder": "ladder", "compute-optimal": "speedup", "power": "power"}.items():
        assert explained(capsys, word.lower())["name"] == page


def test_a_key_of_an_experiment_has_a_page_of_its_own(capsys):
    page = explained(capsys, "margin")
    assert "does not matter" in page["text"] and page["also"] == ["experiment", "verdict"]
    listed = {line.partition(":")[0] for line in explained(capsys, "experiment")["values"]}
    assert {"margin", "tune", "sigma"} <= listed & Experiment.model_fields.keys() and "effect" in listed


def test_a_speedup_has_both_meanings_and_a_list_of_files_is_left_out(capsys):
    lines = explained(capsys, "speedup")["values"]
    assert any("C_base / C" in line for line in lines) and any("L∞" in line for line in lines)
    assert not any("FOLDER/" in line for line in explained(capsys, "ladder")["values"])


@pytest.mark.parametrize("name", ["speedups", "margn"])
def test_a_word_that_is_none_of_them_is_refused(name):
    assert run(["explain", name]) == 2
