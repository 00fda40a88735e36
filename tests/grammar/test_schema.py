"""`zoo schema`: what Zoo reads is valid by it, what Zoo refuses is not, and the published file is what is written."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from pages import choices_page
from support.command_lines import ROOT
from support.packaged_specs import one_in
from zoo.cli import run
from zoo.compose import load
from zoo.compose.targets import compose_model, list_packaged, to_plain_yaml
from zoo.errors import ConfigError
from zoo.grammar.schema import make_schema


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(make_schema())
    return jsonschema.Draft202012Validator(make_schema())


def faults(body: dict) -> list[str]:
    return [f"{'.'.join(map(str, each.absolute_path))}: {each.message[:150]}" for each in validator().iter_errors(body)]


@pytest.mark.parametrize("name", one_in(3, list_packaged()))
def test_a_packaged_model_is_valid_in_its_plain_form(name):
    assert faults(yaml.safe_load(to_plain_yaml(compose_model(name).cfg))) == []


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "model").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_packaged_file_names_the_schema_and_is_valid_as_it_is_written(file):
    text = file.read_text(encoding="utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named is not None and (file.parent / named[1]).resolve() == ROOT / "docs" / "model.schema.json"
    assert faults(yaml.safe_load(text)) == []


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "yaml.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.quick
@pytest.mark.parametrize("text", [text for text in EXAMPLES if "model:" not in text.splitlines()[1]])
def test_an_example_of_the_docs_is_valid(text):
    body = yaml.safe_load(text)
    if "d_model" not in body:  # a part of a file
        body = {"defaults": ["/model/llama-tiny@_here_"], **body}
    assert faults(body) == []


WHOLE = yaml.safe_load(EXAMPLES[0])
WRONG = {
    "a choice that there is not": {"attention": "gqaa"},
    "a kind that there is not": {"ffn": {"kind": "moee"}},
    "a field of another choice": {"attention": {"kind": "mla", "n_kv_heads": 2}},
    "a field at the top": {"qk_norm": True},
    "a word for a number": {"d_model": "wide"},
    "a number below its bound": {"n_heads": 0},
    "true for a number": {"n_layers": True},
    "a field of a component in a component": {
        "attention": {"kind": "gqa", "qk_norm": {"kind": "rmsnorm", "epsilon": 1.0}}
    },
    "another word than those of a field": {"attention": {"kind": "gqa", "qk_norm": {"over": "all"}}},
    "a field of another node": {"attention": {"kind": "gqa", "gate": {"reads": "latent"}}},
    "a key of a layer that there is not": {"layers": {"full": {"atention": "gqa"}}},
    "a rule without its kind": {"pattern": {"every": 4}},
    "a head of another task": {"head": {"kind": "lm", "labels": 3}},
}


@pytest.mark.quick
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_invalid_and_refused(change):
    body = {**copy.deepcopy(WHOLE), **change}
    assert faults(body)
    with pytest.raises(ConfigError):
        load(body)


@pytest.mark.quick
def test_keys_that_every_model_states_are_missed_unless_it_starts_from_another():
    assert faults({"d_model": 64}) and not faults({"defaults": ["/model/llama-tiny@_here_"], "d_model": 64})


@pytest.mark.quick
def test_the_schema_is_written_to_a_file_and_is_that_of_the_docs(tmp_path: Path, capsys):
    assert run(["schema", "--out", str(tmp_path / "s.json")]) == 0 and run(["schema"]) == 0
    printed = capsys.readouterr().out.partition("\n")[2]
    assert json.loads(printed) == json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == make_schema()
    published = choices_page.SCHEMA.read_text(encoding="utf-8")
    assert published == (tmp_path / "s.json").read_text(encoding="utf-8"), "docs/model.schema.json is old (make docs)"
