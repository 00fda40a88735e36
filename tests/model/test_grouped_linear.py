"""Products in groups: their weights, and what they refuse. Families hold their numbers."""

from __future__ import annotations

import pytest

from support.packaged_specs import load
from zoo.costs import price
from zoo.errors import ConfigError

SQUEEZED = ["attention=grouped_linear", "ffn=grouped_linear"]


def test_a_product_in_groups_has_a_share_of_the_weights_and_flops():
    whole, quarters = (
        price(load("llama-tiny", [*SQUEEZED, *(f"{name}_groups={n}" for name in ("ffn.up", "ffn.down"))]), context=8)
        for n in (1, 4)
    )
    spec = load("llama-tiny", SQUEEZED)
    saved = spec.n_layers * 2 * spec.d_model * spec.blocks["layer"].ffn.d_ff * 3 // 4
    assert whole["params"]["total"] - quarters["params"]["total"] == saved
    assert whole["flops"]["forward"] - quarters["flops"]["forward"] == 2 * saved


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ([*SQUEEZED, "attention.q_groups=7"], "q_groups: 7 groups do not divide"),
        ([*SQUEEZED, "ffn.down_groups=7"], "down_groups: 7 groups do not divide"),
        (["ffn=moe", "ffn.expert={kind: grouped_linear, d_ff: 8, activation: {kind: relu}}"], "are not stacked"),
    ],
)
def test_what_cannot_be_grouped_is_refused_in_one_line(overrides, fault):
    with pytest.raises(ConfigError) as caught:
        price(load("llama-tiny", overrides))
    (line,) = caught.value.faults
    assert fault in line


def test_tensor_parallelism_is_refused():
    block = load("llama-tiny", SQUEEZED).blocks["layer"]
    for each in (block.attention, block.ffn):
        with pytest.raises(ConfigError, match="'grouped_linear' does not say how it splits over 2 ranks"):
            each.shard(2)
