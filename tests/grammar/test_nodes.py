"""Nodes, which gather fields of a component: their forms in the plain dialect, and the spellings before them."""

from __future__ import annotations

import pytest

from zoo.compose import load
from zoo.errors import ConfigError

pytestmark = pytest.mark.quick


def spec(*overrides: str, target: object = "llama-tiny") -> object:
    return load(target, list(overrides))  # type: ignore[arg-type]


def test_a_node_is_its_main_field_its_fields_or_both_together() -> None:
    whole = spec("attention.qk_norm={norm: {kind: rmsnorm, eps: 1e-4}, over: heads}")
    assert whole.blocks["layer"].attention.qk_norm.over == "heads"
    for form in (
        "{eps: 1e-4, over: heads}",
        "{kind: rmsnorm, eps: 1e-4, over: heads}",
        "{norm: {eps: 1e-4}, over: heads}",
    ):
        assert spec(f"attention.qk_norm={form}") == whole
    assert spec("attention.gate=true") == spec("attention.gate=sigmoid") == spec("attention.gate={over: channel}")
    assert spec("attention.short_conv=true") == spec("attention.short_conv=4")
    assert spec("attention.qk_norm={over: whole}", target="olmo2-7b") == spec(target="olmo2-7b")
    with pytest.raises(ConfigError, match=r"attention\.clip\.bound: must be greater than 0"):
        spec("attention.clip={bound: -1}")
    with pytest.raises(ConfigError, match=r"attention\.clip: must be greater than 0"):
        spec("attention.clip=-1")


def test_a_field_below_a_choice_that_nothing_states_makes_room_for_it() -> None:
    mixture = ["ffn=moe", "n_experts=4", "top_k=2"]
    gated = spec(*mixture, "ffn.shared.gate=true")
    assert gated.blocks["layer"].ffn.shared.gate and gated == spec(*mixture, "ffn.shared={gate: true}")
    with pytest.raises(ConfigError, match=r"set shared_expert\.gate instead"):
        spec("ffn.shared.gate=false", target="qwen3-next-tiny")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("attention.qk_norm_over=heads", "qk_norm: {over: …}"),
        ("attention.output_gate=true", "gate: true"),
        ("attention.k_is_v=true", "values: {tied: true}"),
        ("attention.o_bias=false", "bias: qkv"),
    ],
)
def test_an_old_spelling_is_refused_with_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec(old)
    (fault,) = caught.value.faults
    assert fault.startswith(old.split("=")[0]) and new in fault
