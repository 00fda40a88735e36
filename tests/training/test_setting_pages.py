"""`zoo explain` of training's settings: values with a line each, and an example that a run takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from zoo.cli import run
from zoo.data.chat.forms import FORMS
from zoo.data.chat.template import NAMED
from zoo.errors import ConfigError
from zoo.spec.fields import list_kinds
from zoo.training.objective import Objective
from zoo.training.setting_pages import explain_setting

AXES = ("data", "objective", "optim", "schedule", "parametrisation", "launcher", "logger", "sample")


def explained(name: str) -> dict:
    page = explain_setting(name)
    assert page is not None
    return page


def test_the_values_of_a_field_are_all_those_that_it_takes():
    form = explained("data.form")
    assert [line.split("`")[1] for line in form["values"]] == [*FORMS]
    assert form["kinds"] == ["jsonl", "parquet", "hf"] and form["default"] == "null"
    assert {line.split("`")[1] for line in explained("data.template")["values"]} == {*NAMED, "FILE"}
    for name in ("objective", "objective.kind"):
        assert [line.split(":")[0] for line in explained(name)["values"]] == list_kinds(Objective)


@pytest.mark.parametrize("name", ["data.form", "data.template", "data.packing", "data.tokenizer", "objective"])
def test_the_example_is_a_command_that_composes(name, capsys):
    command = explained(name)["example"].replace("MODEL", "llama-tiny").split()
    assert command[:2] == ["zoo", "train"]
    assert run([*command[1:], "--cfg", "job"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("axis", AXES)
def test_every_choice_and_field_has_a_page(axis):
    page = explained(axis)
    assert page["text"] and page["values"]
    for kind in (line.split(":")[0] for line in page["values"]):
        whole = explained(f"{axis}.{kind}")
        for field in (line.split(":")[0] for line in whole["values"]):
            example = explained(f"{axis}.{kind}.{field}")["example"]
            assert example.startswith(f"zoo train MODEL {axis}={kind} {axis}.{field}=")


def test_what_is_no_setting_is_left_to_the_grammar_and_a_wrong_word_is_told_the_nearest():
    assert explain_setting("attention.gqa") is None and explain_setting("steps") is None
    with pytest.raises(ConfigError, match=r"data.frm: is no choice and no field of data \(did you mean 'form'\?\)"):
        explain_setting("data.frm")


def test_the_command_prints_the_page_without_torch(capsys):
    assert run(["explain", "data.form", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "data.form"
    program = "import sys; from zoo.cli import run; run(['explain', 'data.form']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "data.form" and lines[-1] == "False"
    assert any(
        line.split() == ["example", "zoo", "train", "MODEL", "data=jsonl", "data.form=messages"] for line in lines
    )
