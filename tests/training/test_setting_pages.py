"""`zoo explain` of training's settings: values with a line each, and an example that a run takes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from zoo.cli import run
from zoo.cli.explain import _explain_setting
from zoo.data.chat.forms import FORMS
from zoo.data.chat.template import NAMED
from zoo.errors import ConfigError
from zoo.spec.fields import list_kinds, read_fields
from zoo.training.objective import Objective
from zoo.training.setting_pages import explain_setting
from zoo.training.settings import Training

AXES = ("data", "objective", "optim", "schedule", "parametrisation", "launcher", "logger")


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


COMPOSED = ["data.form", "data.template", "data.packing", "data.tokenizer", "objective", "precision", "compile"]
COMPOSED += ["other_tokenizer", "parallel", "parallel.cp_comm", "lora.dora"]


@pytest.mark.parametrize("name", COMPOSED)
def test_the_example_is_a_command_that_composes(name, capsys):
    command = shlex.split(explained(name)["example"].replace("MODEL", "llama-tiny"))
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


@pytest.mark.parametrize("name", list(read_fields(Training)))
def test_every_key_of_a_run_has_a_page(name, capsys):
    page = explained(name)
    assert page["text"]
    if page["values"] and name not in AXES:  # a component: lora, sample …
        for field in (line.split(":")[0] for line in page["values"] if "[" in line):
            below = explained(f"{name}.{field}")
            assert (below["text"] and f"{name}." in below["example"]) or f"{name}={{{field}: " in below["example"]
    assert run(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}\n")


def test_a_key_that_the_grammar_has_too_names_it_and_has_the_default_of_the_command():
    page = _explain_setting("parallel")
    assert page is not None and page["also"] == ["block.parallel"] and "fsdp" in str(page["values"])
    assert (explained("steps")["default"], explained("eval_every")["default"]) == ("700", "100")
    assert explained("lora.rank")["example"] == "zoo train MODEL 'lora={rank: …}'"  # lora.rank=8 is refused beside null
    assert explained("sample.tokens")["example"] == "zoo train MODEL sample.tokens=…"
    for name, fault in (("lora.rnk", r"no field of lora \(did you mean 'rank'\?\)"), ("steps.x", "has no fields")):
        with pytest.raises(ConfigError, match=fault):
            explain_setting(name)


def test_what_is_no_setting_is_left_to_the_grammar_and_a_wrong_word_is_told_the_nearest():
    assert explain_setting("attention.gqa") is None and explain_setting("model") is None
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


def test_the_default_is_that_of_a_run_and_not_of_the_class():
    page = explained("optim.lr")
    assert page["default"] == "0.002" and page["kinds"][0] == "adamw"  # conf/optim/adamw.yaml; the class says 0.001
    assert page["example"].startswith("zoo train MODEL optim=adamw optim.lr=")
    assert explained("optim")["default"] == "adamw"
    assert explained("optim.adafactor.lr")["default"] == "0.01"
