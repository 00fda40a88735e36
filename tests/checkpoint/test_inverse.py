"""Expressions and families read backwards: what a value needs, and that a wrong inverse is never written."""

import dataclasses

import pytest
from transformers import CONFIG_MAPPING

from zoo.checkpoint.inverse import find_config, try_family
from zoo.compose import load
from zoo.errors import ConfigError
from zoo.families.binding import TwoWay, assemble_fields, bind
from zoo.families.codecs.words import read_activation
from zoo.families.expression import FUNCTIONS, Expression
from zoo.families.family import family_names, read_family

KNOWN = {"heads": 8, "layer": 2, "d_model": 64, "on": True}
INVERSES = [
    ("x", 5, {"x": 5}),
    ("x or heads", 5, {"x": 5}),
    ("x // heads", 6, {"x": 48}),
    ("x * heads", 24, {"x": 3}),
    ("d_model / x", 16, {"x": 4}),
    ("x - 2", 5, {"x": 7}),
    ("x ** 2", 49, {"x": 7}),
    ("x[layer]", "a", {"x": [None, None, "a"]}),
    ("x.y", 5, {"x": {"y": 5}}),
    ('"lm" if x else "none"', "none", {"x": False}),
    ('"lm" if x == "head" else "none"', "lm", {"x": "head"}),
    ('{"kind": "b", "n": x} if y else {"kind": "a", "n": x}', {"kind": "a", "n": 3}, {"x": 3, "y": False}),
    ("x and not y", True, {"x": True, "y": False}),
    ("each(3, x[layer] + 1)", [2, 3, 4], {"x": [1, 2, 3]}),
    ("act(x)", {"kind": "gelu_tanh"}, {"x": "gelu_pytorch_tanh"}),
    ("dense_or_gated(x, y, z)", {"kind": "gated", "d_ff": 9, "activation": {"kind": "relu"}, "bias": False},
     {"x": True, "y": "relu", "z": 9}),
    ("pos_types(x, y)", ["c2p"], {"x": True, "y": ["c2p"]}),
    ("pos_types(x, [])", [], {"x": False}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value", "fields"), INVERSES, ids=[text for text, _, _ in INVERSES])
def test_the_fields_found_for_a_value_give_that_value(text, value, fields):
    expression = Expression(text)
    found = assemble_fields(bind(expression.tree, value, KNOWN))
    assert found == fields
    assert expression.value({**KNOWN, **found}) == value


@pytest.mark.parametrize(
    ("text", "value"), [("max(x, 3)", 3), ("act(x)", {"kind": "no such"}), ("x or y", None), ("x > 3", True)]
)
def test_what_has_no_inverse_binds_nothing_that_another_row_could_need(text, value):
    assert [each for each in bind(Expression(text).tree, value, KNOWN).values() if each is not None] == []


@pytest.mark.slow
def test_a_wrong_inverse_is_found_by_importing_the_config_again(monkeypatch):
    """Whatever the rows bind, only a config that gives the same Spec is written."""
    spec = load("llama-tiny")
    config, body = find_config(spec)
    assert (config["model_type"], config["hidden_act"]) == ("llama", "silu")
    assert dataclasses.replace(load(body.model), init=spec.init) == spec
    monkeypatch.setitem(FUNCTIONS, "act", TwoWay(read_activation, lambda node: ("relu",)))
    _, _, faults = try_family(read_family("llama"), "LlamaForCausalLM", spec)
    assert any("activation" in fault for fault in faults)
    with pytest.raises(ConfigError, match="activation: is kind 'silu', would be kind 'relu'"):
        find_config(spec)


def test_a_row_that_needs_a_later_rows_field_finds_it():
    """The rotary dimension of Phi is a share of a head, and the number of heads is a field of the attention below."""
    config = {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 2, "partial_rotary_factor": 0.5}
    config |= {"model_type": "phi", "vocab_size": 64, "intermediate_size": 32, "rope_theta": 1e4}
    family = read_family("phi")
    spec = load(family.body(config, "config.json").model)
    found, _, faults = try_family(family, "PhiForCausalLM", spec)
    assert faults == []
    assert found["rope_parameters"]["partial_rotary_factor"] == 0.5


def test_names_that_only_the_familys_expressions_have_are_not_written():
    for name, fields in (
        (
            "llama4_text",
            {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2},
        ),
        ("modernbert", {}),
    ):
        family = read_family(name)
        body = family.body({"vocab_size": 99, **fields}, "config.json")
        config, _, faults = try_family(family, body.architecture, load(body.model))
        assert faults == []
        assert not [key for key in config if key == "layer" or key.startswith("_") or "roped" in key]


ELSEWHERE = {
    "swa_qk_rope_head_dim",  # of dots3's own, which follows from two others
    "num_hash_layers",  # of DeepSeek-V4's published configs; transformers' class has mlp_layer_types
    *("partial_rotary_factor", "rope_theta", "decoder_start_token_id", "num_hidden_layers"),  # read, and kept elsewhere
}


@pytest.mark.parametrize("name", [name for name in family_names() if read_family(name).derive])
def test_what_a_family_derives_is_a_field_of_transformers_class_or_a_helper(name):
    """A helper is named with _ at the front, or with `default_`: neither is written to a config.json."""
    family = read_family(name)
    for kind in set(family.model_types) & set(CONFIG_MAPPING):
        config = CONFIG_MAPPING[kind]()
        has = {*config.to_dict(), *config.attribute_map, *ELSEWHERE}
        assert {each for each in family.derive if not each.startswith(("_", "default_"))} <= has
