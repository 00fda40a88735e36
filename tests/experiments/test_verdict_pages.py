"""What `zoo explain` says of the words of verdicts, experiments and ladders."""

import json
import re
from pathlib import Path

import pytest

from zoo.cli import run
from zoo.experiments.experiment import Expectation, Experiment, make_experiment
from zoo.experiments.verdict_pages import EXAMPLES
from zoo.spec.fields import read_docstrings
from zoo.untrusted.yaml_file import parse_yaml

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


def test_the_example_of_each_key_is_a_line_that_an_experiment_takes(capsys, tmp_path):
    keys = {**read_docstrings(Experiment), **read_docstrings(Expectation)}
    assert {"arms", "seeds", "expect"} <= keys.keys() and keys.keys() - {"verdict"} == EXAMPLES.keys()
    for key, line in EXAMPLES.items():
        (file := tmp_path / "a.yaml").write_text(line)
        made = make_experiment({"arms": {"plain": "", "gated": "attention.gate=true"}, **parse_yaml(file)}, file)
        said = made if line.startswith(key) else made.expect[0]
        assert key in said.model_fields_set, line
        assert key == "shared" or explained(capsys, key)["example"] == line, "a model's YAML has `shared` too"


def test_words_of_two_meanings_say_both_and_words_need_no_quotes(capsys):
    page = explained(capsys, "lr window")
    assert [line.split(": ")[0] for line in page["values"]] == ["experiments, tuned", "cards of probes"]
    assert "within 5 % of the best" in page["values"][0] and "90 % of the best accuracy" in page["values"][1]
    assert run(["explain", "effective", "speedup"]) == 0
    assert capsys.readouterr().out.startswith("speedup\n")


@pytest.mark.parametrize(
    ("word", "name"), [("look", "looks"), ("registration", "registration"), ("pareto", "pareto"), ("reach", "reach")]
)
def test_a_word_of_a_verdict_has_a_page_that_begins_with_what_it_is(capsys, word, name):
    page = explained(capsys, word)
    assert page["name"] == name and page["text"].endswith(".") and page["values"]


def test_a_speedup_has_both_meanings_and_a_list_of_files_is_left_out(capsys):
    lines = explained(capsys, "speedup")["values"]
    assert any("C_base / C" in line for line in lines) and any("L∞" in line for line in lines)
    assert not any("FOLDER/" in line for line in explained(capsys, "ladder")["values"])


@pytest.mark.parametrize("name", ["speedups", "margn"])
def test_a_word_that_is_none_of_them_is_refused(name):
    assert run(["explain", name]) == 2
