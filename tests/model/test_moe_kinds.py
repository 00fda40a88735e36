"""Routers, experts and activations against the reference implementations' own modules."""

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.axk2 import modeling_axk2 as axk2
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek_v4
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.granitemoe import modeling_granitemoe as granitemoe
from transformers.models.llama4 import modeling_llama4 as llama4
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.phimoe import modeling_phimoe as phimoe
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2_moe
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from support.expert_mixtures import TIGHT, D, E, F, filled, halves, layer, load, moe, step, tokens
from support.tiny_models import spec_of
from zoo.costs import Setup
from zoo.costs.traffic import traffic
from zoo.model.activation import Activation
from zoo.model.sparse_mixer import SparseMixer
from zoo.run.layer import Layer

SEEDS = pytest.mark.parametrize("seed", range(4))
SIZES = {"hidden_size": D, "num_attention_heads": 4}
ROUTED = {**SIZES, "moe_intermediate_size": F, "n_routed_experts": E, "num_experts_per_tok": 3}
LOCAL = {**SIZES, "intermediate_size": F, "num_local_experts": E, "num_experts_per_tok": 3}


def gated(d_ff, **fields):
    return {"kind": "gated", "d_ff": d_ff, "activation": {"kind": "silu"}, **fields}


def weights(reference, *, turned=False, **more):
    """The reference's tensors under our names; experts of Llama 4 are stored turned."""
    gate = reference.gate if hasattr(reference, "gate") else reference.router
    both = reference.experts.gate_up_proj, reference.experts.down_proj
    fused, down = (each.transpose(1, 2) if turned else each for each in both)
    found = {"router.gate.weight": gate.weight, **halves(fused), "experts.down.weight": down, **more}
    for name in ("shared_experts", "shared_expert"):
        if mlp := getattr(reference, name, None):
            found |= {f"shared.{part}.weight": getattr(mlp, f"{part}_proj").weight for part in ("gate", "up", "down")}
    return found


def same(ours, x, reference):
    with torch.no_grad():
        torch.testing.assert_close(ours(x, step(x.shape[1])), reference, **TIGHT)


@SEEDS
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (2, 1)])
def test_softmax_routing_by_groups_equals_deepseek_v2(groups, seed):
    config = deepseek_v2.DeepseekV2Config(
        **{
            **ROUTED,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.7,
            "n_group": groups[0],
            "topk_group": groups[1],
        },
        topk_method="greedy" if groups[0] == 1 else "group_limited_greedy",
    )
    reference = filled(deepseek_v2.DeepseekV2Moe(config), seed)
    router = {"kind": "softmax_topk", "n_experts": E, "top_k": 3, "normalize": False, "scale": 1.7}
    router |= {"groups": {"count": groups[0], "open": groups[1]}}
    x = tokens(seed)
    same(load(layer(moe(router, shared=gated(2 * F))), weights(reference)), x, reference(x))


@SEEDS
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (2, 1)])
@pytest.mark.parametrize(
    ("closed_rank", "config", "mixture"),
    [
        ("last", deepseek_v3.DeepseekV3Config, deepseek_v3.DeepseekV3MoE),
        ("zero", axk2.AXK2Config, axk2.AXK2MoE),
    ],
    ids=["deepseek_v3", "axk2"],
)
def test_sigmoid_routing_with_a_selection_bias_equals_the_reference(
    closed_rank, config, mixture, groups, normalize, seed
):
    config = config(
        **{
            **ROUTED,
            "n_shared_experts": 1,
            "routed_scaling_factor": 2.5,
            "n_group": groups[0],
            "topk_group": groups[1],
        },
        norm_topk_prob=normalize,
    )
    reference = filled(mixture(config), seed)
    with torch.no_grad():
        reference.gate.e_score_correction_bias[::3] -= 1.5  # below 0 whatever the score
    router = {"kind": "sigmoid_topk", "n_experts": E, "top_k": 3, "normalize": normalize, "scale": 2.5}
    router |= {"groups": {"count": groups[0], "open": groups[1]}}
    router["groups"] |= {"closed_rank": closed_rank} if groups != (1, 1) else {}
    bias = {"router.selection_bias": reference.gate.e_score_correction_bias}
    x = tokens(seed)
    same(load(layer(moe(router, shared=gated(F))), weights(reference, **bias)), x, reference(x))


@SEEDS
@pytest.mark.parametrize("kind", ["hash", "sqrtsoftplus_topk"])
@pytest.mark.parametrize("scores", ["sqrtsoftplus", "sigmoid"])
def test_experts_by_token_id_or_by_root_of_a_softplus_equal_deepseek_v4(kind, scores, seed):
    config = deepseek_v4.DeepseekV4Config(
        **{"hidden_size": D, "moe_intermediate_size": F, "n_routed_experts": E, "num_experts_per_tok": 3},
        **{"num_hidden_layers": 2, "mlp_layer_types": ["hash_moe", "moe"], "vocab_size": 50, "swiglu_limit": 0.3},
        **{"routed_scaling_factor": 1.5, "scoring_func": scores},
    )
    reference = filled(deepseek_v4.DeepseekV4SparseMoeBlock(config, int(kind != "hash")), seed)
    draw = torch.Generator().manual_seed(seed)
    router = {"kind": kind, "n_experts": E, "top_k": 3, "scale": 1.5}
    if kind == "hash":
        router |= {"vocab_size": 50, "activation": {"kind": scores}}
        chosen = [torch.randperm(E, generator=draw)[:3] for _ in range(50)]
        reference.gate.tid2eid.copy_(torch.stack(chosen))
        tensors = {"router.table": reference.gate.tid2eid}
    else:
        router |= {"kind": "sigmoid_topk"} if scores == "sigmoid" else {}
        tensors = {"router.selection_bias": reference.gate.e_score_correction_bias}
    expert = gated(F, limit=0.3)
    ours = load(layer(moe(router, expert=expert, shared=expert)), weights(reference, **tensors))
    x, ids = tokens(seed), torch.randint(0, 50, (3, 11), generator=draw)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, step(11, ids=ids)), reference(x, ids), **TIGHT)


@SEEDS
@pytest.mark.parametrize("normalize", [True, False])
def test_a_gated_shared_expert_equals_qwen2_moe(normalize, seed):
    config = qwen2_moe.Qwen2MoeConfig(
        **{**SIZES, "moe_intermediate_size": F, "num_experts": E, "num_experts_per_tok": 3},
        **{"shared_expert_intermediate_size": 20, "norm_topk_prob": normalize},
    )
    reference = filled(qwen2_moe.Qwen2MoeSparseMoeBlock(config), seed)
    router = {"kind": "softmax_topk", "n_experts": E, "top_k": 3, "normalize": normalize}
    tensors = weights(reference, **{"shared_gate.weight": reference.shared_expert_gate.weight})
    x = tokens(seed)
    same(load(layer(moe(router, shared={"expert": gated(20), "gate": True})), tensors), x, reference(x))


@SEEDS
@pytest.mark.parametrize("top_k", [1, 2])
def test_scores_on_the_experts_input_equal_llama4(top_k, seed):
    reference = filled(llama4.Llama4TextMoe(llama4.Llama4TextConfig(**{**LOCAL, "num_experts_per_tok": top_k})), seed)
    router = {"kind": "sigmoid_topk", "n_experts": E, "top_k": top_k, "normalize": False, "selection_bias": False}
    ours = load(layer(moe(router, shared=gated(F), scale_input=True)), weights(reference, turned=True))
    x = tokens(seed)
    same(ours, x, reference(x)[0].view_as(x))


@SEEDS
def test_clamped_experts_and_a_router_bias_equal_gpt_oss(seed):
    reference = filled(gpt_oss.GptOssMLP(gpt_oss.GptOssConfig(**LOCAL)), seed)
    router = {"kind": "softmax_topk", "n_experts": E, "top_k": 3, "bias": True}
    experts = reference.experts
    ours = load(
        layer(moe(router, expert={"kind": "gated_clamped", "d_ff": F, "alpha": 1.702, "limit": 7.0})),
        {
            "router.gate.weight": reference.router.weight,
            "router.gate.bias": reference.router.bias,
            "experts.gate.weight": experts.gate_up_proj[..., ::2].transpose(1, 2),
            "experts.up.weight": experts.gate_up_proj[..., 1::2].transpose(1, 2),
            "experts.down.weight": experts.down_proj.transpose(1, 2),
            "experts.gate.bias": experts.gate_up_proj_bias[:, ::2],
            "experts.up.bias": experts.gate_up_proj_bias[:, 1::2],
            "experts.down.bias": experts.down_proj_bias,
        },
    )
    x = tokens(seed) * 6  # so that the bounds bite
    with torch.no_grad():
        gate = x.flatten(0, 1) @ experts.gate_up_proj[0][:, ::2]
    assert gate.max() > 7 and gate.min() < -7
    same(ours, x, reference(x)[0])


@SEEDS
def test_softmax_over_the_chosen_alone_equals_granitemoe(seed):
    reference = filled(granitemoe.GraniteMoeMoE(granitemoe.GraniteMoeConfig(**LOCAL)), seed)
    router = {"kind": "softmax_topk", "n_experts": E, "top_k": 3, "normalize": True}
    x = tokens(seed)
    same(load(layer(moe(router)), weights(reference)), x, reference(x))


def switch_pair(seed, capacity, bias):
    config = switch.SwitchTransformersConfig(
        **{"d_model": D, "d_ff": F, "num_experts": E, "expert_capacity": capacity, "router_bias": bias},
        **{"dense_act_fn": "relu", "router_jitter_noise": 0.0, "dropout_rate": 0.0},
    )
    reference = filled(switch.SwitchTransformersSparseMLP(config), seed)
    router = {"kind": "softmax_topk", "n_experts": E, "top_k": 1, "normalize": False, "bias": bias}
    expert = {"kind": "mlp", "d_ff": F, "activation": {"kind": "relu"}}
    ours = layer(moe(router | {"capacity": capacity, "z_coef": 1.0, "balance_coef": 1.0}, expert=expert))
    classifier = {f"router.gate.{name}": value for name, value in reference.router.classifier.state_dict().items()}
    experts = [reference.experts[f"expert_{index}"] for index in range(E)]
    stacked = {
        "experts.up.weight": torch.stack([expert.wi.weight for expert in experts]),
        "experts.down.weight": torch.stack([expert.wo.weight for expert in experts]),
    }
    return load(ours, classifier | stacked), reference


@SEEDS
@pytest.mark.parametrize("capacity", [1, 2, 64])
def test_tokens_beyond_an_experts_capacity_are_dropped_as_in_switch(capacity, seed):
    ours, reference = switch_pair(seed, capacity, bias=bool(seed % 2))
    x = tokens(seed, batch=3, length=20)
    expected = reference(x)
    dropped = (expected == 0).all(-1)
    assert dropped.any() == (capacity < 64)
    same(ours, x, expected)


@SEEDS
def test_router_losses_equal_switchs(seed):
    ours, reference = switch_pair(seed, 64, bias=False)
    x = tokens(seed, batch=1, length=20)  # the reference averages rows, ours takes all tokens at once
    now = step(20)
    ours.train()(x, now)
    logits = reference.router(x)[2]
    chances = logits.softmax(-1)
    losses = dict(now.losses)
    torch.testing.assert_close(losses["z"], switch.router_z_loss_func(logits), **TIGHT)
    torch.testing.assert_close(losses["balance"], switch.load_balancing_loss_func(chances, chances.argmax(-1)), **TIGHT)


@SEEDS
def test_the_balance_loss_of_several_choices_equals_mixtrals(seed):
    ours = layer(moe({"kind": "softmax_topk", "n_experts": E, "top_k": 2, "balance_coef": 0.5}), seed).train()
    x, now = tokens(seed), step(11)
    ours(x, now)
    scores = ours.router.gate(x).flatten(0, 1)
    # The reference sums over a token's choices; ours (Fedus et al., 2021) is 1 at balance for any top_k.
    expected = mixtral.load_balancing_loss_func((scores,), num_experts=E, top_k=2) / 2
    torch.testing.assert_close(dict(now.losses)["balance"], 0.5 * expected, **TIGHT)


@SEEDS
@pytest.mark.parametrize("jitter", [0.01, 0.2])
def test_sparsemixer_equals_phimoe(jitter, seed):
    config = phimoe.PhimoeConfig(**{**LOCAL, "num_experts_per_tok": 2, "router_jitter_noise": jitter})
    reference = filled(phimoe.PhimoeSparseMoeBlock(config), seed)
    ours = load(layer(moe({"kind": "sparsemixer", "n_experts": E, "jitter": jitter})), weights(reference))
    x = tokens(seed)
    same(ours, x, reference(x))


@SEEDS
def test_sparsemixer_draws_and_differentiates_as_phimoe_in_training(seed):
    router = layer(SparseMixer(n_experts=E, jitter=0.3, balance_coef=0.0), seed).train()
    x = tokens(seed, batch=1, length=40)
    scores = router.gate(x).detach()[0].requires_grad_()
    torch.manual_seed(seed)
    weights, chosen = phimoe.sparsemixer(scores, jitter_eps=0.3, training=True)
    pull = torch.randn(weights.shape[0])
    (weights[:, 0] * pull).sum().backward()
    own = scores.detach()[None].clone().requires_grad_()
    torch.manual_seed(seed)
    exponential = torch.empty_like(own).exponential_()
    first, weight = router.spec._draw(own, own, torch.cat(((-exponential).exp(), torch.rand(1, 40, 1)), -1))
    (weight[0, :, 0] * pull).sum().backward()
    assert torch.equal(first[0, :, 0], chosen[:, 0])
    assert (first != own.argmax(-1, keepdim=True)).any()
    torch.testing.assert_close(weight[0, :, 0], weights[:, 0], atol=1e-4, rtol=0)  # the reference writes 1/3 as 0.3333
    torch.testing.assert_close(own.grad[0], scores.grad, **TIGHT)


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        *[(name, name) for name in ("quick_gelu", "mish", "tanh", "leaky_relu", "relu6", "sigmoid", "relu2", "silu")],
        *[("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"), ("gelu_accurate", "gelu_tanh"), ("gelu", "gelu")],
        *[("gelu_10", "gelu_clipped"), ("linear", "identity"), ("hardswish", "hardswish")],
        *[("laplace", "laplace"), ("sqrtsoftplus", "sqrtsoftplus")],
    ],
)
def test_activations_equal_the_reference(reference, kind):
    x = torch.linspace(-14, 14, 401)
    torch.testing.assert_close(Activation.parse({"kind": kind}).apply(x), ACT2FN[reference](x), atol=1e-6, rtol=1e-5)


def test_squared_relu_with_a_slope_is_the_square_of_a_leaky_relu():
    x = torch.linspace(-14, 14, 401)
    expected = torch.where(x > 0, x, 0.5 * x) ** 2
    torch.testing.assert_close(Activation.parse({"kind": "relu2", "slope": 0.5}).apply(x), expected)


@SEEDS
def test_xielu_and_its_learned_parameters_equal_the_reference(seed):
    reference = ACT2FN["xielu"].float()
    ours = Layer(Activation.parse({"kind": "xielu"}), D)
    for name, parameter in ours.named_parameters():
        start = getattr(reference, name)  # rounded to bfloat16
        torch.testing.assert_close(torch.full_like(start, ours.spec.parts(D)[name].init), start, atol=1e-2, rtol=0)
        with torch.no_grad():
            parameter.copy_(start.copy_(torch.randn(1)))
    for name, buffer in ours.named_buffers():
        buffer.copy_(getattr(reference, name))
    x = torch.linspace(-9, 9, 301)
    torch.testing.assert_close(ours(x), reference(x), **TIGHT)


def test_routed_rows_in_a_latent_go_to_other_ranks_in_its_width():
    sent = []
    for latent in ("null", "8"):
        spec = spec_of(["ffn=moe", f"ffn.latent={latent}"])
        sent.append(traffic(spec, Setup(ep=2, dp=2, context=16, precision="fp32"))["ep"]["bytes"])
    assert sent[0] == sent[1] * spec.d_model // 8 > 0
