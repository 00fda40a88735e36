"""Tiny encoder-decoders and prefix-LMs, so loud that one key too many shows."""

import torch

import zoo
from support.packaged_specs import load

CLOSE = {"atol": 2e-5, "rtol": 0.0}


SIZE = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "head_dim": 6, "d_ff": 40, "max_seq_len": 48, "start_id": 3}


def axes(**choices):
    """A defaults list."""
    return [{f"/{axis}": choice} for axis, choice in choices.items()]


T5 = {
    "kind": "encoder_decoder",
    "defaults": axes(attention="mha", cross="mha", norm="rmsnorm", block="pre", ffn="gated", position="t5"),
    **SIZE,
    "activation": {"kind": "gelu_tanh"},
    "n_buckets": 8,
    "max_distance": 16,
    "attention": {"scale": 1.0},
    "cross": {"scale": 1.0},
    "encoder": {"n_layers": 2},
    "decoder": {"n_layers": 3},
    "head": {"tied": True, "scale": 0.3},
}


UMT5 = {**T5, "defaults": [*T5["defaults"][:-1], {"/position": "t5_layerwise"}]}


BART = {
    "kind": "encoder_decoder",
    "defaults": axes(attention="mha", cross="mha", norm="layernorm", block="post", ffn="mlp", position="learned"),
    **SIZE,
    "activation": {"kind": "gelu"},
    "bias": True,
    "position": {"offset": 2},
    "embedding": {"scale": "sqrt_d_model", "norm": "${norm}"},
    "encoder": {"n_layers": 2},
    "decoder": {"n_layers": 2, "n_heads": 2, "d_ff": 24},
    "head": {"tied": True, "offset": True},
}


SINES = {
    **BART,
    "defaults": [*BART["defaults"][:-1], {"/position": "sinusoidal_halves"}],
    "position": {"inclusive": True, "offset": 2, "skip_id": 1},
}


# Grouped keys, a window in half of the decoder's layers, and tables of their own.
MODERN = {
    **T5,
    "defaults": [{"/attention": "gqa"}, *T5["defaults"][1:-1], {"/position": "rope"}],
    "n_kv_heads": 2,
    "attention": {},
    "decoder": {
        "n_layers": 3,
        "layers": {"near": {"attention": {"window": 4}}},
        "pattern": ["near", "layer"],
        "embedding": {"tied": None},
        "vocab_size": 53,
    },
    "head": {"tied": False},
}


for gone in ("n_buckets", "max_distance"):
    del MODERN[gone]


# One softmax over the decoder's own keys, some of them in a window, and the encoder's.
MERGED = {
    **MODERN,
    "defaults": [*MODERN["defaults"][:1], {"/cross": "merged"}, *MODERN["defaults"][2:]],
    "attention": {"qk_norm": "${norm}", "sinks": True, "bias": True},
    "cross": {},
}


def random(node):
    """A model of a YAML node, every tensor of it random."""
    model = zoo.build(load(node), device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


def ids_of(model, rows, length, seed=0):
    """Tokens that every table has."""
    smallest = min(tower.vocab_size for _, tower in model.towers())
    return torch.randint(5, smallest, (rows, length), generator=torch.Generator().manual_seed(seed))


PREFIX = {
    "prefix_lm": True,
    "defaults": [
        {"/attention": "gqa"},
        {"/norm": "rmsnorm"},
        {"/block": "pre"},
        {"/ffn": "gated"},
        {"/position": "rope"},
    ],
    **{key: value for key, value in SIZE.items() if key != "start_id"},
    "n_layers": 3,
    "n_kv_heads": 2,
    "activation": {"kind": "silu"},
}


BIASED = {**PREFIX, "defaults": [*PREFIX["defaults"][:-1], {"/position": "t5"}], "n_buckets": 8, "max_distance": 16}


ALIBI = {**PREFIX, "defaults": [*PREFIX["defaults"][:-1], {"/position": "alibi"}]}


NEAR = {**PREFIX, "attention": {"window": 3}, "n_layers": 1}
