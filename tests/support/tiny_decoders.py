"""Tiny decoders of every choice, and greedy generation without a cache."""

import torch

import zoo
from support.packaged_specs import load, make_loud
from support.tiny_models import choices, needs

AXES = ("attention", "block", "norm", "position", "ffn", "activation", "router")


EVERY = [f"{axis}={choice}" for axis in AXES for choice in choices(axis) if axis != "cross"]


EVERY = [swap for swap in EVERY if "kind=encoder" not in needs(swap)]  # which writes nothing


SWAPS = {
    "attention=sliding": ["window=5"],
    **{f"position={name}": ["original_max_seq_len=8"] for name in ("rope_dynamic", "rope_llama3", "rope_yarn")},
}


MORE = [
    ["pattern=[local*2,layer]", "+layers={local:{attention:{window:3},position:{theta:100.0}}}", "n_layers=3"],
    ["pattern=[local,layer]", "+layers={local:{attention:{window:4}}}", "position=alibi"],
    ["attention=sliding", "window=1"],
    ["attention=sliding", "window=5", "position=learned", "block=post", "norm=layernorm", "ffn=mlp"],
    ["attention=sliding", "window=6", "position=alibi", "n_heads=3", "n_kv_heads=1", "attention.exclusive=true"],
    ["+attention.qk_norm={kind:rmsnorm}", "+attention.softcap=5.0", "+head.softcap=8.0", "bias=true"],
    ["+position.interleaved=true", "rotary_dim=4", "+head.tied=true", "+embedding.scale=sqrt_d_model"],
]


COMBINATIONS = [*([swap, *SWAPS.get(swap, []), *needs(swap)] for swap in EVERY), *MORE]


TINY = {
    **{"attention": "gqa", "position": "rope", "norm": "rmsnorm", "block": "pre", "ffn": "gated", "activation": "silu"},
    **{
        "router": "softmax_topk",
        "vocab_size": 61,
        "d_model": 24,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
    },
    **{"d_ff": 32, "max_seq_len": 64, "n_experts": 4, "head": {"kind": "lm"}, "embedding": {"kind": "tokens"}},
}


def tiny(*overrides):
    """A model whose weights are so loud that a key too many, too few or misplaced shows in the logits."""
    return make_loud(zoo.build(load(TINY, overrides), device="cpu").eval(), (61, 64))


def prompt(batch=2, length=9):
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def recomputed(model, ids, new):
    """Greedy generation without a cache: the whole sequence anew for each token."""
    for _ in range(new):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids
