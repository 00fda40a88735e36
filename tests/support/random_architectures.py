"""Random legal combinations of the axes."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

import zoo
from support.packaged_specs import load
from zoo.errors import ConfigError

VOCAB, LENGTH = 61, 14


SIZES = {
    **{"vocab_size": VOCAB, "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "d_ff": 20, "max_seq_len": 48},
    **{"n_experts": 4, "top_k": 2, "window": 5, "original_max_seq_len": 32, "position_buckets": 8},
    **{"q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5},
    **{"index_n_heads": 16, "index_head_dim": 6, "index_top_k": 4, "index_block_size": 2, "index_top_blocks": 2},
    **{"index_pool": 2},
    **{"block_size": 1, "random_blocks": 1, "compress_rate": 3, "o_groups": 2, "o_lora_rank": 5},
    **{"d_state": 4, "max_relative_positions": 24},
}


NORM = st.sampled_from(["layernorm", "layernorm_plain", "rmsnorm", "rmsnorm_offset", "dyt", "affine"])


SOFTMAX = ("gqa", "mha", "mqa", "sliding")


ATTENTION = st.sampled_from(
    [
        *SOFTMAX,
        "mla",
        "dsa",
        "msa",
        "cca",
        "qsa",
        "csa",
        "hca",
        "differential",
        "fourier",
        "transient_global",
        "longformer",
        "block_sparse",
        "transformer_xl",
        "nystrom",
        "span_conv",
        "disentangled_v1",
        "disentangled",
        "mamba",
        "mamba2",
        "gated_delta",
        "kda",
        "lightning",
        "gla",
        "rg_lru",
        "rwkv",
        "rwkv7",
        "mlstm",
        "retention",
        "short_conv",
        "side_by_side",
    ]
)


POSITION = st.sampled_from(
    [
        *("none", "learned", "sinusoidal", "sinusoidal_halves", "rope", "rope_interleaved", "rope_linear", "rope_yarn"),
        *(
            "rope_llama3",
            "rope_proportional",
            "alibi",
            "t5",
            "t5_layerwise",
            "t5_globals",
            "relative",
            "relative_buckets",
            "relative_logits",
        ),
    ]
)


ROUTER = st.sampled_from(
    ["softmax_topk", "sigmoid_topk", "sqrtsoftplus_topk", "hash", "expert_choice", "sparsemixer", "mlp_topk"]
)


QK_NORM = st.sampled_from(
    [
        {"qk_norm": {"kind": "rmsnorm"}},
        {"qk_norm": {"norm": {"kind": "layernorm"}, "over": "heads"}},
        {"qk_norm": {"norm": {"kind": "rmsnorm", "unit_offset": True}, "over": "whole"}},
        {"qk_norm": {"norm": {"kind": "rmsnorm", "weight": False}, "last": True}},
    ]
)


@st.composite
def attentions(draw):
    """Fields of softmax attention, a few at a time."""
    fields = {}
    if draw(st.booleans()):
        fields |= draw(QK_NORM)
    for name, value in (
        *(("sinks", True), ("gate", True), ("clip", 0.7), ("softcap", 3.0), ("scale", 0.3), ("bias", "o")),
        *(("window_kind", "chunked"), ("tempering", {"kind": "log", "floor": 4.0}), ("out_norm", {"kind": "rmsnorm"})),
        *(("exclusive", True), ("value_residual", 0.3)),
        *(("values", {"head_dim": 6, "scale": 0.6}), ("values", {"tied": True, "norm": {"kind": "rmsnorm"}})),
    ):
        if draw(st.integers(0, 5)) == 0:
            fields[name] = value
    return fields


@st.composite
def architectures(draw):
    """A model's YAML, as data: legal or not."""
    kind = draw(st.sampled_from(["decoder", "decoder", "encoder", "encoder_decoder"]))
    attention = draw(ATTENTION)
    body = {
        **SIZES,
        "kind": kind,
        "attention": attention,
        "position": draw(POSITION),
        "norm": draw(NORM),
        "block": draw(
            st.sampled_from(["pre", "post", "sandwich", "post_inside", "parallel", "mixer", "hyper", "shortcut"])
        ),
        "activation": draw(st.sampled_from(["relu", "gelu", "gelu_tanh", "silu", "relu2", "quick_gelu", "xielu"])),
        "bias": draw(st.booleans()),
        "n_layers": 2,
    }
    if body["block"] == "hyper":
        body["streams"] = {"kind": draw(st.sampled_from(["mean", "weighted"])), "count": 4}
    if body["block"] != "mixer":
        body["ffn"] = draw(st.sampled_from(["mlp", "gated", "gated_clamped", "channel_mix", "moe"]))
        if body["ffn"] == "moe":
            body["router"] = draw(ROUTER)
            for name in ("zero_experts", "null_experts"):
                body[name] = draw(st.sampled_from([0, 0, 1]))
    if kind == "encoder_decoder":
        body["cross"] = "mha"
    defaults = [{f"/{axis}": body.pop(axis)} for axis in AXES if axis in body]
    if attention in SOFTMAX:
        body["attention"] = draw(attentions())
    head = {"kind": "lm", "tied": draw(st.booleans()), "bias": draw(st.booleans())}
    body |= {"head": head, "embedding": {"kind": "tokens"}, "shared_layers": draw(st.integers(0, 4)) == 0}
    if draw(st.integers(0, 3)) == 0:
        body["layers"] = {"near": {"attention": {"window": 4}} if attention in SOFTMAX else {"norm": {"eps": 1e-4}}}
        body["pattern"] = ["near", "layer"]
    return {"defaults": defaults, **body}


AXES = ("attention", "position", "norm", "block", "ffn", "router", "activation", "cross")


def made(body):
    """The model with every parameter loud, or None where the grammar refuses the combination."""
    try:
        spec = load(body)
    except ConfigError as error:
        assert error.faults and all(len(fault.splitlines()) == 1 and ": " in fault for fault in error.faults)
        return None
    model = zoo.build(spec, device="cpu").eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model
