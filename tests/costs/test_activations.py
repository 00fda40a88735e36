"""What a training step keeps, told without torch, against what torch's autograd saves of the built model."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from support.call_counts import calls_of
from support.packaged_specs import load, one_in
from support.saved_activations import check, passes, saved_by, told
from support.tiny_models import LOOPED, MODULES, TOLD, every_choice, name, spec_of
from zoo.costs import price
from zoo.costs.activations import PassShape, _traced, list_sections
from zoo.model.activation import Activation
from zoo.run.builder import build

SHRUNK = {
    "t5-small": ["n_layers=2", "head_dim=8", "d_ff=48"],
    "bart-base": ["d_ff=48"],
    "gemma2-2b": ["n_layers=4", "n_kv_heads=2", "head_dim=8", "d_ff=48"],
    "gpt-oss-20b": ["n_layers=4", "n_kv_heads=2", "head_dim=8", "d_ff=48"],
    "bloom-560m": ["n_layers=2", "d_ff=48"],
    "opt-350m": ["n_layers=2", "d_ff=48"],
    "deepseek-v3": ["n_layers=4", "d_ff=48"],
    "bert-base": ["n_layers=2", "d_ff=48"],
}
"""Published models with what no choice of conf/ has: cross-attention, softcaps, sinks, a projected embedding."""


@pytest.mark.parametrize("dtype", one_in(2, ["fp32", "bf16"]))
@pytest.mark.parametrize("overrides", one_in(6, every_choice()), ids=name)
def test_every_choice_keeps_what_autograd_saves(overrides, dtype):
    check(spec_of(overrides), dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", SHRUNK)
def test_published_shapes_keep_what_autograd_saves(model, dtype):
    check(load(model, ["d_model=32", "n_heads=4", "vocab_size=67", *SHRUNK[model]]), dtype=dtype)


def drawn(seed):
    """Overrides of a random model."""
    draw = random.Random(seed)
    kv, group, width = draw.choice([1, 2, 3]), draw.choice([1, 2, 4]), draw.choice([4, 8, 10])
    found = [f"n_kv_heads={kv}", f"n_heads={kv * group}", f"head_dim={width}", f"d_model={draw.choice([16, 24, 40])}"]
    found += [f"d_ff={draw.choice([20, 48, 56])}", f"n_layers={draw.choice([1, 2, 3])}"]
    found += [f"bias={draw.choice(['true', 'false'])}", f"norm={draw.choice(['rmsnorm', 'layernorm'])}"]
    found += [f"block={draw.choice(['pre', 'post', 'sandwich', 'post_inside', 'parallel'])}"]
    found += [f"position={draw.choice(['rope', 'alibi', 'none', 'learned', 'rope_interleaved', 't5'])}"]
    extra = {
        "window": ["attention.window=4"],
        "softcap": ["attention.softcap=20"],
        "sinks": ["attention.sinks=true"],
        "clip": ["attention.clip=3"],
        "gate": ["attention.gate=true"],
        "softplus": ["attention={gate: {over: head, activation: softplus}}"],
        "values": ["attention={values: {head_dim: 6, scale: 0.6}, out_norm: {kind: rmsnorm}}"],
        "inner norm": ["ffn.inner_norm={kind: rmsnorm}"],
        "qk": [
            "attention.qk_norm={kind: rmsnorm}",
            f"attention.qk_norm.over={draw.choice(['head', 'heads', 'whole'])}",
        ],
        "scaled": ["block.residual_scale=0.5", "embedding.scale=sqrt_d_model"],
        "tied": ["head.tied=true", "head.softcap=30"],
    }
    chosen = draw.sample(list(extra), 3)
    for key in chosen:
        found += extra[key]
    if draw.random() < 0.5 and "inner norm" not in chosen:
        found += ["ffn=moe", f"n_experts={draw.choice([4, 6])}", f"top_k={draw.choice([1, 2, 3])}"]
        if draw.random() < 0.5:
            found += ["shared_expert={expert: {kind: gated, d_ff: 24, activation: {kind: silu}}, gate: true}"]
    return found, draw.choice([1, 2, 3]), draw.choice([2, 7, 16, 33])


@pytest.mark.parametrize("seed", range(30))
def test_random_models_keep_what_autograd_saves(seed):
    overrides, batch, context = drawn(seed)
    check(spec_of(overrides), batch=batch, context=context, dtype=random.Random(seed).choice(["fp32", "bf16"]))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["position=alibi"],
        ["attention=mla"],
        ["attention=mamba2", "position=none"],
        ["attention=side_by_side"],
        ["attention.short_conv=4"],
        ["attention=mla", "attention.short_conv=4"],
        ["attention={gate: {bias: head}, out_norm: {norm: rmsnorm, over: head}}"],
        ["block=sandwich", "block.around_ffn={out_norm: {kind: layernorm}}", "block.residual={kind: gated}"],
        ["ffn=moe", "ffn.latent={width: 12, norm: {kind: rmsnorm, weight_first: true}}", "ffn.expert_norm=${norm}"],
        ["block=hyper", "+streams={kind: weighted, count: 4}"],
        LOOPED,
        TOLD,
        MODULES,
    ],
)
def test_the_eager_kernel_keeps_its_scores(overrides):
    check(spec_of(overrides), kernel="eager")


@pytest.mark.parametrize(
    "overrides", [[], ["norm=layernorm", "ffn=mlp"], ["ffn=moe"], ["attention=mla"], ["position=t5"]]
)
def test_autocast_keeps_what_autograd_saves_and_a_copy_of_each_matrix(overrides):
    spec = spec_of(overrides)
    model = build(spec, device="cpu").train()
    run = passes(model, spec, 2, 9)

    def cast():
        with torch.autocast("cpu", torch.bfloat16):
            return run()

    told_of = told(spec, list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", autocast="bf16", fused=False)))
    tables = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    matrices = [each for each in model.parameters() if each.dim() > 1 and id(each) not in tables]
    assert spec.head.tied
    matrices.append(model.embedding.tokens.weight)
    assert saved_by(model, cast) == told_of + Counter(2 * each.numel() for each in matrices)


@pytest.mark.parametrize("overrides", [[], ["attention.softcap=20"], ["attention=mla"]])
def test_selective_recomputation_keeps_what_goes_into_attention_alone(overrides, monkeypatch):
    from zoo.kernels import attend
    from zoo.kernels.view import base

    spec = spec_of(overrides)
    model = build(spec, device="cpu").train()
    expected = told(spec, list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", fused=False, selective=True)))

    def again(q, k, v, *rest, **options):
        return checkpoint(lambda q, k, v: attend(q, k, v, *rest, **options), q, k, v, use_reentrant=False)

    monkeypatch.setattr(base, "attend", again)
    found = saved_by(model, passes(model, spec, 2, 9))
    found.pop(0, None)  # an empty tensor that torch 2.11 keeps for a checkpoint
    assert found == expected


# ---------------------------------------------------------------- known by hand


def test_a_llama3_layer_keeps_the_published_bytes_on_a_gpu():
    # 2·(4d + 2·H·C + 2·K·C + 3f) + 4H + 8: norms' inputs and outputs, q, k, v, attention's output, gate, up and
    # product, and in float32 the logarithms of sums and two deviations.
    layer = list_sections(load("llama3-8b", []), PassShape(context=4096))["layer:layer"]
    assert layer.bytes == 4096 * (2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336) + 4 * 32 + 8) == 4096 * 139_400


def test_a_gpt2_layer_keeps_the_published_bytes_on_a_gpu():
    # 32·d is Korthikanti et al.'s 34 without the masks of two dropouts; then 4H, and mean and deviation of two norms.
    layer = list_sections(load("gpt2", []), PassShape(context=1024))["layer:layer"]
    assert layer.bytes == 1024 * (32 * 768 + 4 * 12 + 16)


def test_a_layer_by_name_says_what_it_keeps():
    names = [each.name for each in list_sections(load("llama3-8b", []), PassShape(context=16))["layer:layer"].kept]
    for part in ("input", "attention_norm", "attention.v", "attention.core/sdpa", "ffn.gate", "ffn.up", "ffn/mul"):
        assert part in names


def test_depth_costs_nothing():
    shallow, deep = (load("llama3-8b", [f"n_layers={layers}"]) for layers in (1, 2000))
    run = PassShape(context=512)
    assert list_sections(deep, run) == list_sections(shallow, run)
    assert calls_of(lambda: list_sections(deep, run)) <= 1.01 * calls_of(lambda: list_sections(shallow, run))


@pytest.mark.parametrize("model", ["mamba-130m", "mamba2-130m", "qwen3-next-80b-a3b"])
def test_long_sequences_through_a_loop_are_told_from_short_ones(model):
    spec = load(model, [])
    run = PassShape(context=1777)
    told_of, traced = list_sections(spec, run), _traced(spec, run)
    assert {name: each.bytes for name, each in told_of.items()} == {name: each.bytes for name, each in traced.items()}
    long, short = (
        calls_of(lambda length=length: list_sections(spec, PassShape(context=length))) for length in (1_000_000, 4000)
    )
    assert long <= 1.5 * short  # where it walked every step of the loop it would be 250 times as many


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_a_long_pass_through_two_mixers_side_by_side_is_told_from_short_ones(kernel):
    spec = spec_of(["attention=side_by_side", "attention.recurrent.chunk_size=16"])
    run = PassShape(context=64 * 9 + 5, kernel=kernel)
    told_of, traced = list_sections(spec, run), _traced(spec, run)
    assert {name: each.bytes for name, each in told_of.items()} == {name: each.bytes for name, each in traced.items()}


# ---------------------------------------------------------------- in the price


def test_full_recomputation_keeps_a_layer_s_input():
    held = price(load("llama3-8b", []), context=2048, batch=3, recompute="full")["memory"]
    assert held["activations_by_layer"] == {"layer": 3 * 2048 * 4096 * 2}


def test_more_recomputation_keeps_less():
    spec = load("gemma2-2b", [])
    found = [
        price(spec, context=2048, recompute=each)["memory"]["activations"] for each in ("none", "selective", "full")
    ]
    assert found == sorted(found, reverse=True) and len(set(found)) == 3


class Odd(Activation, kind="odd"):
    """Calls what zoo.costs.shadow does not know, by torch's own name."""

    def apply(self, x):
        return torch.nn.functional.prelu(x, x)


class Bent(Activation, kind="bent"):
    """A new variant, from outside of the package."""

    def apply(self, x):
        return torch.tanh(x) * torch.nn.functional.silu(x)


def with_activation(made):
    spec = spec_of()
    block = spec.blocks["layer"]
    return replace(spec, blocks={"layer": replace(block, ffn=replace(block.ffn, activation=made))})


def test_a_new_component_is_priced_unasked():
    check(with_activation(Bent()))


def test_an_operation_that_is_not_known_is_named_and_leaves_the_other_figures():
    held = price(with_activation(Odd()))["memory"]
    assert "'prelu'" in held["activations_unknown"] and "activations" not in held and held["weights"] > 0
