"""`zoo family new` drafts a family that computes what transformers computes, or says what it could not place. The types
tried have a YAML here, from which the draft takes nothing."""

from __future__ import annotations

import pytest
import yaml

from zoo.cli import run
from zoo.families.family import family_folder, parse_family
from zoo.porting import port
from zoo.porting.nearest import list_others

QUICK = ("arcee",)
SLOW = ("seed_oss", "cwm", "exaone", "jais2", "solar_open", "glm4_moe_lite", "hy_v3")

UNEXPRESSED = {"glm4_moe_lite": {"config.json written back"}}
"""What a draft leaves to its author: here the base states a field of its own for which layers are dense."""


@pytest.mark.parametrize("model_type", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
@pytest.mark.slow
def test_a_draft_without_the_types_own_family_computes_what_the_reference_computes(model_type):
    found = port.draft_family(model_type, {})
    assert model_type not in list_others(model_type)
    assert {name for name, (holds, _) in found.parity.checks.items() if not holds} <= UNEXPRESSED.get(model_type, set())
    assert {"logits", "padded rows", "cached generation", "config.json with sizes alone"} <= set(found.parity.checks)
    assert {name: said for name, said in found.parity.fields.items() if said.startswith(("WRONG", "unread"))} == {}
    assert parse_family(model_type, yaml.safe_load(found.draft.to_yaml())) == found.draft.to_family()


@pytest.mark.slow
def test_a_type_that_no_other_family_can_express_is_said_to_depart_and_where():
    found = port.draft_family("diffllama", {})
    assert not found.parity.holds
    said = "\n".join(port.describe(found))
    assert "NOT equal" in said and ("without a place" in said or "differences by stage: embedding" in said)


def refuse(capsys, *words):
    """The one line with which the command is refused."""
    assert run(["family", "new", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_file_that_is_there_is_not_replaced(capsys):
    file = family_folder() / "arcee.yaml"
    assert f"{file}: is there already (--out names another file" in refuse(capsys, "arcee")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("lama",), "has no such type (did you mean 'llama'?)"),
        (("llama", "hidden_sizes=3"), "hidden_sizes: no field of LlamaConfig (did you mean 'hidden_size'?)"),
        (("llama", "hidden_size"), "hidden_size: is no field of a config (NAME=VALUE would do)"),
        (("vit",), "vit: has no model for causal or masked language modelling to compare with"),
        (("llama", "num_attention_heads=0"), "(NAME=VALUE changes"),
    ],
)
def test_what_cannot_be_drafted_is_said_in_one_line(tmp_path, capsys, words, line):
    assert line in refuse(capsys, *words, "--out", str(tmp_path / "draft.yaml"))
    assert not (tmp_path / "draft.yaml").exists()


def test_transformers_missing_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.checkpoint.verify_folder.find_spec", lambda name: None)
    assert "transformers is not installed" in refuse(capsys, "llama", "--out", str(tmp_path / "draft.yaml"))
