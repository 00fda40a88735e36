"""Every field has a page: `zoo explain`, `zoo list --axis AXIS CHOICE` and docs/choices/ say what it is, who sets it
and what it costs."""

from __future__ import annotations

import json
import re
import shlex
from typing import Literal

import pytest
import yaml
from pydantic import PositiveFloat, PositiveInt

from pages import choices_page
from support.packaged_specs import load, one_in
from zoo import costs
from zoo.analysis.grammar_names import describe_field, explain, list_names
from zoo.analysis.uses import find_setters
from zoo.cli import run
from zoo.errors import ConfigError
from zoo.grammar import vocabulary
from zoo.grammar.vocabulary import read_choices
from zoo.model.attention.gqa import GQA
from zoo.model.head import LMHead
from zoo.model.norm import RMSNorm
from zoo.paths import conf_dir
from zoo.spec.fields import find_formula, first_sentence, read_fields

UNDESCRIBED: set[str] = set()
"""Classes of which a field has no docstring yet. The list only shrinks."""


class Described(RMSNorm):
    """A choice of a test."""

    width: PositiveInt
    """Width of the vector in channels."""
    bound: PositiveFloat | None = None
    """Bound of the scores s, c·tanh(s/c)
    (Gemma 2, 2024)."""
    bare: Literal["near", "far"] = "near"


def all_fields():
    """Every field of every choice: the choice and the field."""
    places = [choice for axis in vocabulary.list_axes() for choice in read_choices(axis).values()]
    return [(choice, field) for choice in places for field in choice.fields.values()]


@pytest.mark.quick
def test_every_field_of_every_choice_has_a_description():
    without = {field.owner.__name__: field.name for _, field in all_fields() if not field.text}
    assert {name: field for name, field in without.items() if name not in UNDESCRIBED} == {}


@pytest.mark.quick
def test_a_description_begins_with_a_sentence():
    described = {(field.owner.__name__, field.name): field.sentence for _, field in all_fields() if field.text}
    assert {place: text for place, text in described.items() if not text.endswith(".")} == {}


@pytest.mark.quick
def test_a_field_is_described_by_the_docstring_below_it():
    fields = read_fields(Described)
    assert fields["bound"].text == "Bound of the scores s, c·tanh(s/c) (Gemma 2, 2024)."
    assert (fields["bound"].formula, fields["bound"].paper) == ("c·tanh(s/c)", "Gemma 2, 2024")
    assert (fields["bound"].type, fields["bound"].default) == ("number above 0 or null", None)
    assert (fields["width"].unit, fields["width"].is_required) == ("channels", True)
    assert fields["bare"].text == "" and fields["bare"].type == "one of: near, far"
    assert fields["eps"].owner.__name__ == "RMSNorm"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("What scores are multiplied by, 1/√head_dim unless given.", "1/√head_dim"),
        ("The norm x / √(mean(x²) + eps) · weight (Zhang and Sennrich, 2019).", "x / √(mean(x²) + eps) · weight"),
        ("Bias of x·W_gate, and/or of none.", ""),
        ("Scale (1 − a) / (1 − b of it) of all.", "(1 − a) / (1 − b of it)"),
    ],
)
def test_a_formula_is_found_among_words(text, formula):
    assert find_formula(text) == formula


@pytest.mark.quick
def test_the_first_sentence_ends_at_a_full_stop_and_not_at_a_name():
    assert (
        first_sentence("As of Shazeer et al. (2019) and e.g. T5. More.") == "As of Shazeer et al. (2019) and e.g. T5."
    )


# ---------------------------------------------------------------- who sets it


@pytest.mark.parametrize(
    "name", ["gemma2-2b", "gemma3-1b", "gpt-oss-20b", "qwen3-8b", "olmo3-7b", "llama3-8b", "glm-4.5"]
)
def test_a_model_is_named_at_the_fields_that_its_spec_has_otherwise_than_by_default(name):
    parts = [block.attention for block in load(name).blocks.values() if type(block.attention) is GQA]
    for field in ("qk_norm", "softcap", "sinks", "scale", "gate"):
        values, _ = find_setters(GQA, field)
        named = any(name in names for value, names in values.items() if value not in ("null", "false"))
        assert named == any(getattr(part, field) not in (None, False) for part in parts), field


@pytest.mark.quick
def test_values_are_counted_as_the_models_have_them():
    values, families = find_setters(LMHead, "tied")
    for name in (values["true"][0], values["true"][-1], values["false"][0]):
        assert load(name).towers()["decoder" if "decoder" in load(name).towers() else ""].head.tied is (
            name in values["true"]
        )
    assert "gemma" in families


@pytest.mark.quick
def test_what_models_state_is_written_in_the_plain_form():
    stated = explain("layers")["stated"]
    assert "gemma2-9b" in stated["{local: {attention: {window: 4096}}, global: {}}"]
    assert not any("${" in value for key in ("layers", "shared_expert") for value in explain(key)["stated"])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "type", "default"),
    [
        ("attention.gqa.qk_norm", "true, a norm (…), or a mapping of norm, over, last; null for none", "null"),
        (
            "attention.gqa.gate",
            "true, sigmoid or softplus, or a mapping of over, activation, bias; null for none",
            "null",
        ),
        ("attention.gqa.clip", "a bound (…) or a mapping of bound, normed; null for none", "null"),
        ("attention.gqa.qk_norm.norm", "a norm (…)", "the model's norm"),
        ("attention.gqa.clip.bound", "number above 0", "must be given"),
        ("head_dim", "whole number above 0", "must be stated where an attention reads it"),
        ("n_kv_heads", "whole number above 0", "the model's n_heads"),
        ("n_experts", "whole number above 0", "8"),
        ("attention.gqa.head_dim", "whole number above 0", "the model's head_dim"),
    ],
)
def test_types_and_defaults_are_what_a_file_may_say(name, type, default):
    page = explain(name)
    assert (re.sub(r"\([^)]*\)", "(…)", page["type"]), page["default"]) == (type, default)


@pytest.mark.quick
def test_a_main_component_that_is_left_out_is_the_models():
    model = load("llama-tiny", ["attention.qk_norm={over: heads}"])
    assert [type(block.attention.qk_norm.norm) for block in model.blocks.values()] == [RMSNorm]


# ---------------------------------------------------------------- what it costs


@pytest.mark.quick
@pytest.mark.parametrize("name", ["attention.gqa.qk_norm", "attention.gqa.sinks", "head.lm.tied", "n_kv_heads", "d_ff"])
def test_an_example_can_be_pasted_and_costs_what_the_page_says(name, tmp_path):
    example = explain(name)["example"]
    _, _, target, override = shlex.split(example["command"])
    (tmp_path / "mine.yaml").write_text(f"defaults: [/model/{target}@_here_]\n{example['line']}\n", encoding="utf-8")
    changed = load(target, [override])
    assert load(tmp_path / "mine.yaml") == changed
    before, after = (costs.price(spec, parts=["params"])["params"]["total"] for spec in (load(target), changed))
    figures = example["figures"].get("parameters", {"before": before, "after": before})
    assert (figures["before"], figures["after"]) == (before, after)
    assert (before != after) == ("parameters" in example["figures"])


@pytest.mark.quick
def test_the_example_of_an_optional_component_adds_it():
    example = explain("ffn.moe.shared")["example"]
    assert example["figures"]["parameters"]["after"] > example["figures"]["parameters"]["before"]


@pytest.mark.quick
def test_a_field_that_needs_another_says_what_it_needs_and_one_without_weights_changes_no_figure(capsys):
    assert run(["explain", "attention.gqa.values.rotate"]) == 0 and run(["explain", "rope_theta"]) == 0
    assert "changes no figure" in capsys.readouterr().out
    assert "clip.bound: is missing" in explain("attention.gqa.clip.normed")["example"]["refusal"]


@pytest.mark.parametrize("axis", one_in(27, reversed(vocabulary.list_axes())))
def test_every_field_has_a_page(axis):
    for choice, field in all_fields():
        if choice.axis == axis and choice.word == choice.spec.kind:
            page = describe_field(choice, field)
            example = page["example"]
            assert page["type"] and page["default"]
            assert example is None or example["refusal"] or yaml.safe_load(example["line"])


# ---------------------------------------------------------------- the verbs


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "page", "whole"),
    [
        ("router", "axis", "router"),
        ("mla", "choice", "attention.mla"),
        ("attention.sliding", "choice", "attention.sliding"),
        ("attention.qk_norm", "field", "attention.gqa.qk_norm"),
        ("attention.gqa.qk_norm.over", "field", "attention.gqa.qk_norm.over"),
        ("attention.gqa.qk_norm.eps", "field", "norm.rmsnorm.eps"),
        ("attention.mla.indexer.lightning.top_k", "field", "indexer.lightning.top_k"),
        ("d_model", "key", "d_model"),
        ("topology.decoder.shared_layers", "key", "shared_layers"),
        ("pattern", "key", "pattern"),
        ("eos_id", "key", "eos_id"),
        ("qk_norm", "field", "attention.gqa.qk_norm"),
        ("gate", "field", "attention.gqa.gate"),
        ("shared", "field", "ffn.moe.shared"),
    ],
)
def test_a_name_is_found_however_it_is_written(name, page, whole):
    found = explain(name)
    assert (found["page"], found["name"]) == (page, whole)


@pytest.mark.quick
def test_a_page_opened_by_a_bare_name_names_the_other_places_of_it(capsys):
    assert explain("gate")["also"] == ["attention.mla.gate", "attention.gated_delta.gate"]
    assert run(["explain", "shared"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("also      indexer.shared")
    assert "also" not in explain("attention.gqa.gate")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("atention", "is no name of the grammar (did you mean 'attention'?)"),
        ("attention.gqqa", "(did you mean 'gqa'?)"),
        ("attention.gqa.qk_nrm", "attention 'gqa' has no such field (did you mean 'qk_norm'?)"),
        ("attention.gqa.scale.eps", "scale holds number above 0 or null, which has no fields"),
        ("softcap", "is ambiguous (one of: attention.gqa.softcap, head.lm.softcap, "),
        ("output_gate", "is no name of the grammar any more (now attention: {gate: true})"),
        ("attention.output_gate", "is no name of the grammar any more (now attention: {gate: true})"),
        ("attention.mla.output_gate", "attention 'mla' has no such field any more (now gate: true)"),
        ("hidden_size", "is no name of the grammar (d_model is Zoo's name for it; zoo explain d_model)"),
    ],
)
def test_a_name_that_is_nothing_or_several_things_is_refused_in_one_line(name, line, refused):
    (found,) = refused("explain", name)
    assert found.startswith(f"{name}: ") and line in found
    with pytest.raises(ConfigError):
        explain(name)


def test_a_key_that_choices_read_in_their_own_ways_is_described_for_all_of_them():
    page = explain("norm_eps")
    assert page["text"].endswith("RMSNorm adds it to the mean square, LayerNorm to the variance.")
    assert re.fullmatch(r"1.0e-6 in norm.rmsnorm and \d+ more; 1.0e-5 in norm.layernorm and \d+ more", page["default"])


def test_a_field_that_is_taken_from_the_model_is_not_asked_for():
    (row,) = (each for each in explain("head.lm")["fields"] if each["field"] == "vocab_size")
    assert row["default"] == "the model's vocab_size"


def test_a_field_names_the_packaged_models_that_set_it():
    (row,) = (each for each in explain("position.learned")["fields"] if each["field"] == "skip_id")
    stating = {path.stem for path in (conf_dir() / "model").glob("*.yaml") if "skip_id" in path.read_text("utf-8")}
    assert row["models"] and set(row["models"]) >= stating


def test_families_whose_configs_may_state_a_scaling_are_named_at_it():
    assert "phi3" in explain("position.rope.scaling.longrope")["families"]


def test_pages_name_type_default_and_sentence(capsys):
    assert run(["explain", "attention.gqa.qk_norm"]) == run(["list", "--axis", "attention", "gqa"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "in a file attention: {kind: gqa, qk_norm: " in said
    assert "Ainslie et al., 2023" in said and "the model's n_kv_heads or n_heads" in said


@pytest.mark.quick
def test_a_name_is_completed_below_an_axis_and_below_a_choice():
    assert "attention.mla" in list_names("attention") and "norm.dyt.alpha" in list_names("norm.dyt")
    assert {"attention", "n_kv_heads", "streams"} <= set(list_names("")) and list_names("nonsense") == []


@pytest.mark.quick
def test_a_page_is_data_too(capsys):
    assert run(["list", "--axis", "norm", "dyt", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["source"].startswith("Zhu et al., 2025") and [each["field"] for each in page["fields"]] == ["alpha"]
    assert run(["list", "--axis", "norm", "dyyt"]) == 2


@pytest.mark.xdist_group("axes")
@pytest.mark.parametrize("axis", one_in(9, vocabulary.list_axes()))
def test_the_pages_of_choices_are_what_their_command_writes(axis):
    written = (choices_page.FOLDER / f"{axis}.md").read_text(encoding="utf-8")
    assert written == choices_page.page(axis), f"docs/choices/{axis}.md is old (make docs)"
