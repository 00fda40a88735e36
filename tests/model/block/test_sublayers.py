"""Blocks of sub-layers on one stream, beside their formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.packaged_specs import load, make_loud
from zoo.errors import ConfigError
from zoo.run.builder import build

ATTENTION, FFN = "attention", "ffn"
NORM = "{kind: layernorm, eps: 0.1}"


def build_block(*overrides: str) -> Any:
    """A layer with loud weights, whose norms have weights, alone in a model."""
    spec = load(
        "llama-tiny", ["n_layers=1", "d_model=24", "n_heads=2", "n_kv_heads=1", "head_dim=8", "d_ff=40", *overrides]
    )
    return make_loud(build(spec, device="cpu", dtype="fp32").eval(), ())


def run_layer(model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The layer's input and output, and what attention and the feed-forward gave."""
    seen: dict[str, Any] = {}
    block = model.blocks[0]
    hooks = [
        getattr(block, name).register_forward_hook(lambda _, given, y, name=name: seen.update({name: (given[0], y)}))
        for name in (ATTENTION, FFN)
    ]
    hooks.append(block.register_forward_hook(lambda _, given, y: seen.update(block=(given[0], y))))
    with torch.no_grad():
        model(torch.arange(12).reshape(2, 6))
    for hook in hooks:
        hook.remove()
    return seen["block"][0], seen["block"][1], seen


CASES = {
    "pre": ([], lambda m, name, x, f: x + f(getattr(m, f"{name}_norm")(x))),
    "post": (["block=post"], lambda m, name, x, f: getattr(m, f"{name}_norm")(x + f(x))),
    "post_inside": (["block=post_inside"], lambda m, name, x, f: x + getattr(m, f"{name}_norm")(f(x))),
    "sandwich": (
        ["block=sandwich"],
        lambda m, name, x, f: x + getattr(m, f"{name}_out_norm")(f(getattr(m, f"{name}_norm")(x))),
    ),
    "pre whose stream goes on from the norms": (
        ["block.residual_from_norm=true", "block.stream_scale=0.7", "block.residual_scale=0.3"],
        lambda m, name, x, f: 0.7 * getattr(m, f"{name}_norm")(x) + 0.3 * f(getattr(m, f"{name}_norm")(x)),
    ),
    "pre, but the feed-forward": (
        [
            f"block.around_ffn={{in_norm: {NORM}, out_norm: {NORM}, stream_norm: {NORM}}}",
            "block.around_ffn={residual_scale: 0.4, stream_scale: 2}",
        ],
        lambda m, name, x, f: (
            x + f(m.attention_norm(x))
            if name == ATTENTION
            else m.ffn_stream_norm(2 * x + 0.4 * m.ffn_out_norm(f(m.ffn_norm(x))))
        ),
    ),
    "sandwich, but attention": (
        ["block=sandwich", f"block.around_attention={{in_norm: false, out_norm: {NORM}, residual_scale: 0.4}}"],
        lambda m, name, x, f: (
            x + 0.4 * m.attention_out_norm(f(x)) if name == ATTENTION else x + m.ffn_out_norm(f(m.ffn_norm(x)))
        ),
    ),
    "post with a norm before attention": (
        ["block=post", f"block.around_attention={{in_norm: {NORM}}}"],
        lambda m, name, x, f: (
            m.attention_stream_norm(x + f(m.attention_norm(x))) if name == ATTENTION else m.ffn_norm(x + f(x))
        ),
    ),
    "sandwich, but no norm behind attention": (
        ["block=sandwich", "block.around_attention={out_norm: false}"],
        lambda m, name, x, f: x + (f(m.attention_norm(x)) if name == ATTENTION else m.ffn_out_norm(f(m.ffn_norm(x)))),
    ),
    "post without any norm of the feed-forward": (
        ["block=post", "block.around_ffn={stream_norm: null}"],
        lambda m, name, x, f: m.attention_norm(x + f(x)) if name == ATTENTION else x + f(x),
    ),
    "post_inside with weighed sums": (
        ["block=post_inside", "block.residual={kind: affine}"],
        lambda m, name, x, f: getattr(m, f"{name}_residual")(x, getattr(m, f"{name}_norm")(f(x))),
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize(("overrides", "formula"), CASES.values(), ids=CASES)
def test_a_block_computes_its_formula(overrides, formula):
    model = build_block(*overrides)
    x, y, seen = run_layer(model)
    inputs = []

    def give(name: str) -> Any:
        def f(read: torch.Tensor) -> torch.Tensor:
            inputs.append((read, seen[name][0]))
            return seen[name][1]

        return f

    with torch.no_grad():
        for name in (ATTENTION, FFN):
            x = formula(model.blocks[0], name, x, give(name))
    torch.testing.assert_close(y, x)
    for read, given in inputs:
        torch.testing.assert_close(given, read)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["block.around_ffn=true"], "block.around_ffn: is true, not a mapping (its fields: in_norm, out_norm"),
        (["block.around_ffn={in_norm: layrnorm}"], "block.around_ffn.in_norm: is 'layrnorm', no choice of norm"),
        (
            ["block.residual={kind: affine}", "block.around_ffn={stream_scale: 0.5}"],
            "block: around_ffn.residual_scale or stream_scale beside a residual that has weights of its own",
        ),
        (["block.ffn_out_norm=true"], "block 'pre' has no such field any more (around_ffn: {out_norm: rmsnorm})"),
        (["block=mixer", "block.around_ffn={in_norm: false}"], "block 'mixer' has no such field"),
    ],
)
def test_what_stands_nowhere_is_refused(overrides, fault):
    with pytest.raises(ConfigError) as refused:
        load("llama-tiny", overrides)
    assert any(fault in each for each in refused.value.faults), refused.value.faults
