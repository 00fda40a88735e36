"""Experts that compute nothing, in a mixture."""

import pytest
import torch
from test_moe_kinds import SEEDS, same
from transformers.models.longcat_flash import modeling_longcat_flash as longcat

from support.expert_mixtures import D, E, F, filled, halves, layer, load, moe, step, tokens
from support.tiny_models import spec_of
from zoo.costs import Setup, price
from zoo.costs.traffic import traffic
from zoo.errors import ConfigError


@SEEDS
@pytest.mark.parametrize("zeros", [0, 3, 7])
def test_experts_that_compute_nothing_equal_longcat_flash(zeros, seed):
    config = longcat.LongcatFlashConfig(
        **{"hidden_size": D, "num_attention_heads": 4, "expert_ffn_hidden_size": F, "moe_topk": 4},
        **{"n_routed_experts": E - zeros, "zero_expert_num": zeros, "routed_scaling_factor": 1.7},
    )
    reference = filled(longcat.LongcatFlashMoE(config), seed)
    router = {"kind": "softmax_topk", "n_experts": E, "top_k": 4, "normalize": False, "selection_bias": True}
    experts = reference.experts
    ours = load(
        layer(moe({**router, "scale": 1.7}, zero_experts=zeros)),
        {
            "router.gate.weight": reference.router.classifier.weight,
            "router.selection_bias": reference.router.e_score_correction_bias,
            **halves(experts.gate_up_proj[: E - zeros]),
            "experts.down.weight": experts.down_proj,
        },
    )
    x = tokens(seed)
    same(ours, x, reference(x))
    x, y = (x.clone().requires_grad_() for _ in range(2))
    ours(x, step(x.shape[1])).square().sum().backward()
    reference(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.experts["down"].weight.grad, experts.down_proj.grad, atol=1e-4, rtol=1e-4)


def test_experts_that_compute_nothing_are_priced_by_how_often_they_are_chosen():
    plain, zeros = (price(spec_of(["ffn=moe", "n_experts=8", "top_k=4", *own])) for own in ([], ["zero_experts=2"]))
    one = 3 * 3 * 32 * 48  # three layers
    assert plain["params"]["total"] - zeros["params"]["total"] == 2 * one
    assert plain["params"]["active"] - zeros["params"]["active"] == one  # 3 of 4 chosen experts compute, on average
    assert plain["flops"]["forward"] - zeros["flops"]["forward"] == 2 * one
    sent = [
        traffic(spec_of(["ffn=moe", "n_experts=8", "top_k=4", own]), Setup(ep=2, dp=2, context=16))["ep"]["bytes"]
        for own in ("zero_experts=0", "zero_experts=2")
    ]
    assert sent[0] * 3 == sent[1] * 4 > 0
    with pytest.raises(ConfigError, match="zero_experts=8 leaves none of n_experts=8 to compute"):
        spec_of(["ffn=moe", "n_experts=8", "zero_experts=8"])
