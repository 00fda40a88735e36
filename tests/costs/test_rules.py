"""The textbook's approximations: each is as far off as was measured, and none is given where it does not fit."""

import json
from functools import cache
from typing import Any

import pytest

from support.packaged_specs import load, one_in
from zoo.compose.targets import list_packaged
from zoo.costs import Setup, flops, price
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.rules_of_thumb import rules_of_thumb


@cache
def spec_of(name: str) -> Any:
    return load(name)


@cache
def rules(name: str, **fields: Any) -> dict[str, dict[str, Any]]:
    spec, setup = spec_of(name), Setup(**fields)
    return rules_of_thumb(spec, setup, figures(spec, setup))


def figures(spec: Any, setup: Setup) -> dict[str, Any]:
    """A price; of a context that is longer than a table of positions without the memory of such a pass."""
    if setup.tokens(spec) <= spec.max_seq_len:
        return price(spec, setup)
    counted = flops.count_flops(spec, setup.tokens(spec), setup.convention)
    return {**price(spec), "flops": counted, "kv_cache": kv_cache(spec, setup)}


# Relative to the whole model's published count.
TWELVE = {
    "gpt2": -0.32,
    "llama3-8b": -0.20,
    "llama3.2-1b": -0.35,
    "qwen3-4b": -0.30,
    "gemma2-9b": -0.30,
    "mixtral-8x7b": -0.86,
    "qwen3-30b-a3b": -0.92,
    "deepseek-v3": -0.94,
}


@pytest.mark.parametrize("name", TWELVE)
def test_twelve_layers_d_squared_is_this_far_off(name):
    assert rules(name)["parameters"]["error"] == pytest.approx(TWELVE[name], abs=0.005)


def test_twelve_layers_d_squared_holds_for_the_inside_of_a_gpt():
    rule = rules("gpt2")["non_embedding"]
    assert rule["value"] == 12 * 12 * 768**2
    assert abs(rule["error"]) < 0.002


# 2N over the exact mean of a causal sequence, by context.
TWO = [
    ("llama3-8b", 4096, 1.00),
    ("llama3-8b", 131_072, 0.33),
    ("gpt2", 4096, 0.77),
    ("mixtral-8x7b", 4096, 3.52),
    ("qwen3-30b-a3b", 4096, 7.94),
    ("deepseek-v3", 4096, 16.1),
]


@pytest.mark.parametrize("name, context, ratio", TWO)
def test_two_flops_a_parameter_is_this_far_off(name, context, ratio):
    found = rules(name, context=context)
    assert found["flops_forward"]["error"] + 1 == pytest.approx(ratio, abs=0.005 if ratio < 10 else 0.05)
    assert found["flops_train"]["error"] == pytest.approx(found["flops_forward"]["error"], abs=1e-6)


def test_two_flops_an_active_parameter_is_near_for_experts():
    assert abs(rules("mixtral-8x7b", context=4096)["flops_forward_active"]["error"]) < 0.05


# The textbook's KV cache over what is kept.
CACHES = {"gpt2": 1.0, "llama3-8b": 4.0, "qwen3-4b": 2.5, "gemma2-9b": 1.75, "deepseek-v3": 24.9}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_as_wide_as_the_model_is_this_far_off(name):
    rule = rules(name, context=1024)["kv_cache"]
    assert rule["error"] + 1 == pytest.approx(CACHES[name], rel=0.002)


def test_a_cache_by_key_heads_is_exact_without_windows():
    for name in ("llama3-8b", "qwen3-4b", "gpt2"):
        assert rules(name, batch=3, context=777)["kv_cache_heads"]["error"] == 0
    assert rules("gemma2-9b", context=8192)["kv_cache_heads"]["error"] == pytest.approx(
        1 / 3
    )  # half of them at W = S/2


def test_a_rule_is_of_the_whole_model_by_the_exact_convention_whatever_was_asked():
    plain, palm = rules("llama3-8b", context=4096), rules("llama3-8b", context=4096, convention="kaplan")
    assert plain["flops_forward"] == palm["flops_forward"]


def test_training_tokens_are_twenty_a_parameter_unless_given():
    plain, given = rules("gpt2"), rules("gpt2", train_tokens=1e9)
    n = 124_439_808
    assert plain["training_tokens"]["value"] == 20 * n
    assert plain["training_flops"]["value"] == 6 * n * 20 * n
    assert given["training_flops"]["value"] == 6 * n * 1e9


def test_sixteen_bytes_a_parameter_hold_for_adam():
    for setup in ({}, {"precision": "fp32"}, {"precision": "bf16"}):
        rule = rules("llama3-8b", **setup)["adam_states"]
        assert rule["value"] == 16 * 8_030_261_248
        assert rule["error"] == 0
    assert rules("llama3-8b", precision="bf16_master")["adam_states"]["error"] == pytest.approx(16 / 18 - 1)


def test_activations_of_a_llama_are_near_those_of_a_gpt():
    # its gate adds a tensor to its feed-forward, and what it leaves out are masks and biases
    assert rules("llama3-8b")["activations"]["error"] == pytest.approx(-0.005, abs=0.001)
    assert 0 < rules("gpt2")["activations"]["error"] < 34 / 32 - 1  # two masks of dropout that are not there


WHERE_NOT = {
    "t5-small": {"parameters": "encoder", "kv_cache": "encoder", "activations": "encoder"},
    "mamba-130m": {"parameters": "recurrent", "kv_cache": "recurrent", "kv_cache_heads": "mamba"},
    "qwen3-next-80b-a3b": {"parameters": "36 of the 48 layers keep a recurrent state"},
    "deepseek-v3": {"kv_cache_heads": "mla"},
    "bert-base": {"kv_cache": "writes nothing"},
}


@pytest.mark.parametrize("name", WHERE_NOT)
def test_where_a_rule_does_not_fit_it_has_no_value_but_a_reason(name):
    found = rules(name)
    for key, word in WHERE_NOT[name].items():
        assert found[key]["value"] is None and found[key]["error"] is None
        assert word in found[key]["reason"]


def test_what_the_rule_would_give_is_said():
    assert "(it would give 3.775e+07)" in rules("t5-small")["parameters"]["reason"]  # 12 · 12 · 512²


@pytest.mark.parametrize("name", one_in(6, list_packaged()))
def test_every_packaged_model_has_every_rule(name):
    found = rules(name)
    assert json.loads(json.dumps(found)) == found
    assert set(found) == set(rules("gpt2"))
    for rule in found.values():
        assert set(rule) - {"reason"} == {"rule", "value", "exact", "error", "unit", "holds"}
        assert (rule["value"] is None) == ("reason" in rule)
        if rule["error"] is not None:
            assert rule["error"] == pytest.approx(rule["value"] / rule["exact"] - 1)


def test_figures_of_one_rank_are_not_held_against_a_whole_model():
    found = rules("llama3-8b", tp=2)
    assert found["adam_states"]["reason"].startswith("the exact figure is one rank's of 2")
    assert found["parameters"]["value"] is not None
