"""Elementwise operations, against formulas written out for a model."""

import pytest

from support.tiny_models import spec_of
from zoo.costs.elementwise_flops import count_elementwise

D, HEADS, KV, C, FF, LAYERS = 32, 4, 2, 8, 48, 3
SIZES = [f"d_model={D}", f"n_heads={HEADS}", f"n_kv_heads={KV}", f"head_dim={C}", f"d_ff={FF}", f"n_layers={LAYERS}"]


def count(*overrides):
    return count_elementwise(spec_of([*SIZES, "position=none", *overrides]))


def test_a_layer_has_two_norms_two_sums_and_a_gated_activation():
    norms, sums, gated = 4 * D * (2 * LAYERS + 1), D * 2 * LAYERS, 2 * FF * LAYERS
    assert count() == pytest.approx(norms + sums + gated, rel=0.02)


@pytest.mark.parametrize(
    ("override", "added"),
    [
        ("attention.qk_norm=rmsnorm", 4 * C * (HEADS + KV)),
        ("attention.gate=sigmoid", 2 * HEADS * C),
        ("norm=layernorm", 3 * D * 2),
        ("block=sandwich", 4 * D * 2),
    ],
)
def test_what_multiplies_no_matrices_is_counted(override, added):
    outside = 3 * D if override == "norm=layernorm" else 0
    assert count(override) - count() == pytest.approx(added * LAYERS + outside, rel=0.02)


def test_operations_a_token_hardly_depend_on_the_context():
    short, long = (count_elementwise(spec_of([*SIZES, f"max_seq_len={each}"])) for each in (64, 256))
    assert short == pytest.approx(long, rel=0.05)
