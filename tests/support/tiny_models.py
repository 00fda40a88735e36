"""Build tiny models of every shape, for the tests: every choice of every axis of conf/, laid over one small Llama."""

import copy
import functools
import re
from collections.abc import Iterator

import torch

from support.packaged_specs import load
from zoo.grammar import AXES
from zoo.paths import conf_dir
from zoo.run.builder import build

SIZE = [
    *("n_layers=3", "d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=67"),
    *("max_seq_len=64", "window=5", "n_experts=4", "original_max_seq_len=32"),
]
"""Overrides that make llama-tiny small enough for hundreds of tests; a window shorter than any test's sequence."""

MIXED = ["pattern=[near*2,layer]", "layers={near:{attention:{window:4},position:{kind:none}}}", "n_layers=5"]
"""A pattern of two kinds of layer: two near-sighted ones without positions, then one that sees all."""

LENT = [
    "pattern=[near,layer,reader,near_reader]",
    "layers={near:{attention:{window:4,values:{norm:{kind:layernorm}},gate:{bias:head},"
    "out_norm:{norm:{kind:rmsnorm},over:head}}},reader:{attention:{kv_from:layer}},"
    "near_reader:{attention:{window:4,kv_from:near}}}",
    "attention.values.tied=true",
    "layers.reader.attention.values.tied=false",
    "layers.near_reader.attention.values.tied=false",
    "n_layers=6",
]
"""Layers that read the keys and values of earlier ones, some of them with one product for both; and gated heads."""


CONVOLVED = [
    *("position=relative_logits", "relative_extent=4", "attention.tempering={kind: log_ratio, floor: 4}"),
    "attention={short_conv: {width: 3, over: kv, residual: true}}",
    *("block.out_conv={d_model: 32, width: 3}", "ffn=moe", "router=sigmoid_topk", "router.n_shared=2"),
    *("router.global_scale=true", "shared_expert={kind: gated, d_ff: 12, activation: {kind: silu}, bias: false}"),
]
"""Short convolutions inside and after sub-layers, logits of distances, shared experts that the router weighs."""


DEEP = [
    *("block=attention_residual", "attention=dynamic_gqa", "conv_width=3", "position=relative_logits"),
    *("relative_extent=4", "position.norm={kind: l2_clip, threshold: 0.5}", "block.opens=false"),
    "attention={separate_inputs: true, short_conv: {scale: 0.4}, gate: true}",
    "attention={qk_norm: {norm: {kind: l2_clip, threshold: 0.7}, over: heads}}",
    "attention={k_norm: {kind: l2_clip, threshold: 0.9, weight: false}}",
    *("block.out_conv={d_model: 32, width: 3, scale: 0.5}", "ffn.up_softcap=0.8", "pattern=[first,near,opens]"),
    "layers={first: {block: {opens: true, reads_earlier: false}}, opens: {block: {opens: true}}, near: {attention: "
    "{window: 4, separate_inputs: false, short_conv: {dynamic: false}}}}",
]
"""Sub-layers that read groups of layers over depth, some of them several vectors; and sinks of each token."""

LOOPED = [
    *("n_layers=8", "pattern=[near,layer,near,layer,near,layer,near*2]", "+layers={near:{attention:{window:4}}}"),
    "+loop={start:1,end:3,passes:3}",
]
"""Two layers that are run three times."""
TOLD = [
    *("block=attention_residual", "attention=dynamic_gqa", "conv_width=3", "n_layers=8", "norm_eps=1e-3"),
    *("+loop={kind:restarting,start:1,end:3,passes:3}", "attention.separate_inputs=true"),
    "pattern=[first,round,near,again,near_again,again,near_again,last]",
    "+layers.near={attention:{window:4,short_conv:{dynamic:false}},block:{joint_read:true}}",
    "+layers.near_again={attention:{window:4,short_conv:{dynamic:false}},"
    "block:{joint_read:true,messages:{kind:low_rank,rank:3}}}",
    *("+layers.again={block:{messages:{kind:low_rank,rank:3}}}", "+layers.round={}", "+layers.last={}"),
    "+layers.first={block:{reads_earlier:false}}",
]
"""The same, each pass told by messages what the one before it found."""
MODULES = [
    *(
        "n_layers=8",
        "pattern=[layer,last,last,layer,last,last,layer,layer]",
        "+layers={last:{block:{around_ffn:{stream_norm:rmsnorm}}}}",
    ),
    "+loop={kind:hierarchical,end:3,passes:2,low_layers:2}",
]
"""Two modules that refine a state each: two layers, and one that runs once after them in each of two passes."""


def choices(axis: str) -> list[str]:
    """List the packaged choices of an axis."""
    return sorted(path.stem for path in (conf_dir() / axis).glob("*.yaml"))


AVERAGED = [
    *("ffn=moe", "router=mlp_topk", "d_router=12", "router.depth_average=true", "n_experts=8"),
    *("null_experts=1", "zero_experts=1"),
    *("pattern=[first,layer*2]", "layers={first:{router:{depth_average:false}}}"),
]
"""Routers that read those of earlier layers, and experts that compute nothing."""

READS = re.compile(r"\$\{(?:up|or):([^}]*)\}")


@functools.cache
def list_reads(choice: str) -> frozenset[str]:
    """List the names that an attention's YAML reads from the model around it: `n_heads` of `n_heads: ${up:n_heads}`.
    A mapping in place of a choice (`{window: 4}`) changes what the model has, and reads heads of one width."""
    file = conf_dir() / "attention" / f"{choice}.yaml"
    if not file.is_file():
        return frozenset({"n_heads", "head_dim", "position"})
    return frozenset(name for names in READS.findall(file.read_text("utf-8")) for name in names.split(","))


LATENT = ("mla", "dsa", "dsa_pooled")
"""Attentions that keep llama-tiny's own head_dim of 32: their heads have a rotated and a plain part of that width."""

LOW = ["q_lora_rank=10", "o_groups=2", "o_lora_rank=6"]
NGRAMS = ["+streams={kind: gated, count: 4, rank: 6, norm: {kind: rmsnorm}}"]
NEEDS = {
    **{f"attention={each}": ["position=none"] for each in choices("attention") if "position" not in list_reads(each)},
    "attention=disentangled": ["kind=encoder", "position=relative_buckets", "position_buckets=8"],
    "attention=disentangled_v1": ["kind=encoder", "position=relative"],
    "attention=longformer": ["kind=encoder"],
    "attention=block_sparse": ["kind=encoder", "block_size=1", "random_blocks=1"],
    "attention=nystrom": ["kind=encoder", "position=none", "attention.n_landmarks=3", "attention.conv_width=3"],
    "attention=span_conv": ["kind=encoder", "position=none", "attention.conv_width=3"],
    "attention=transformer_xl": ["kind=encoder", "position=none"],
    "attention=fourier": ["kind=encoder", "position=learned"],
    "attention=transient_global": ["kind=encoder", "position=t5_globals", "global_block_size=4"],
    "position=t5_globals": ["kind=encoder", "attention=transient_global", "global_block_size=4"],
    "attention=dsa": ["index_top_k=4", "index_n_heads=8", "index_head_dim=40"],
    "attention=dsa_pooled": ["index_top_k=4", "index_n_heads=8", "index_head_dim=40", "index_pool=2"],
    "attention=csa": ["index_top_k=4", "index_n_heads=8", "index_head_dim=40", "compress_rate=3", *LOW],
    "attention=hca": ["compress_rate=4", *LOW],
    "attention=qsa": ["index_top_k=4", "index_n_heads=8", "index_head_dim=16", "index_pool=2"],
    "attention=msa": ["index_n_heads=2", "index_head_dim=16", "index_block_size=4", "index_top_blocks=2"],
    "position=relative": ["kind=encoder", "attention=disentangled_v1"],
    "position=relative_buckets": ["kind=encoder", "attention=disentangled", "position_buckets=8"],
    "attention=bottleneck": ["block=bottleneck", "bottleneck_width=12"],
    "block=bottleneck": ["bottleneck_width=10", "n_ffns=2"],  # more sums and norms make more of rounding
    "block=post_conv": ["kind=encoder"],
    "block=attention_residual": ["pattern=[first,layer*2]", "layers={first: {block: {reads_earlier: false}}}"],
    "block=feed_forward": ["position=none"],
    "block=shared_attention": ["attention=mamba2"],
    "block=hyper": ["+streams={kind: weighted, count: 4}"],
    "block=hyper_ngrams": [*NGRAMS, "eos_id=9", "stream_rank=6", "ngram_hashes=2", "ngram_table_size=70"],
    "block=altup": ["+streams={kind: altup, count: 4}"],
    "router=expert_choice": ["kind=encoder", "ffn=moe"],
    "router=mlp_topk": ["ffn=moe", "d_router=12"],
}
"""What a choice is only of use with."""


def needs(choice: str) -> list[str]:
    """List the overrides without which a choice has no effect, itself left out."""
    return NEEDS.get(choice, ["ffn=moe"] if choice.startswith("router=") else [])


def every_choice() -> Iterator[list[str]]:
    """List overrides that swap one axis at a time to each of its packaged choices, and a mixed pattern of layers."""
    for axis in AXES:
        for choice in choices(axis) if axis != "cross" else ():  # which only an encoder-decoder has
            yield [f"{axis}={choice}", *needs(f"{axis}={choice}")]
    yield ["attention=kda", "attention.low_rank=false", "attention.lower_bound=-2.0", "position=none"]
    yield ["attention=mla", "attention.gate=true", "attention.tempering={kind: log, floor: 4, first: 0}"]
    yield [
        *("attention=mla", "pattern=[layer,reader]", "+layers={reader: {attention: {kv_from: layer}}}"),
        *("attention.tempering={kind: scalable_softmax}", "position={rotary_dim: 8, learned: true}"),
    ]
    yield ["block=shortcut", "ffn=moe", "zero_experts=1", "attention=mla", "scale_latents=true", "q_lora_rank=10"]
    yield [
        *("attention=mla", "q_lora_rank=10", "attention.gate={over: channel, reads: latent}"),
        *("attention.sinks=true", "attention.raw_latent=true"),
    ]
    yield ["attention=mla", "attention.window=4", "attention.rope_norm=true"]
    yield ["attention=gqa", "attention.exclusive=true", "attention.window=4"]
    yield ["attention=gqa", "attention.value_residual=0.5", "n_kv_heads=1"]
    yield ["block=shared_attention", "attention=mamba2", "adapter_rank=3"]
    yield ["attention=cca", "attention.window=4", "attention.head_width=3", "block.residual={kind: affine}", *AVERAGED]
    yield ["attention=mamba", "attention.heads=2", "position=none"]
    yield CONVOLVED
    yield DEEP
    yield LOOPED
    yield TOLD
    yield MODULES
    yield MIXED
    yield LENT
    head = "head={kind: mlm, activation: {kind: gelu}, norm: {kind: layernorm}}"
    yield ["kind=encoder", head, "embedding={n_types: 2, mask_id: 7}", "position={rotary_dim: 8, stored: true}"]


def spec_of(overrides: list[str] | tuple[str, ...] = ()):
    """Load the Spec of the small Llama with these overrides; those of SIZE that nothing reads are left out."""
    return load("llama-tiny", [*readable(list(overrides)), *overrides])


def readable(overrides: list[str]) -> list[str]:
    asked = {override.split("=")[0] for override in overrides}
    size = [override for override in SIZE if override.split("=")[0] not in asked]
    text = " ".join(overrides)
    attention = next((each.split("=")[1] for each in overrides if each.startswith("attention=")), "gqa")
    mixes = "block=feed_forward" not in text
    reads = list_reads(attention)
    wanted = {
        "window": "window" in reads,
        "d_ff": "block=mixer" not in text,
        "n_heads": "n_heads" in reads and mixes,
        "head_dim": "head_dim" in reads and attention not in LATENT and mixes,
        "n_kv_heads": mixes and ("n_kv_heads" in reads or "shared_attention" in text),
        "n_experts": "ffn=moe" in text,
        "original_max_seq_len": any(kind in text for kind in ("rope_dynamic", "rope_yarn", "rope_llama3")),
    }
    return [override for override in size if wanted.get(override.split("=")[0], True)]


def model_of(overrides: list[str] | tuple[str, ...] = (), *, seed: int = 0, dtype: str = "fp32"):
    """Build the small Llama in eval mode with EVERY parameter random, so that no bias or norm weight can be forgotten
    unnoticed. Each call gives a copy of its own, which the test may change."""
    return copy.deepcopy(_made(tuple(overrides), seed, dtype))


@functools.cache
def _made(overrides: tuple[str, ...], seed: int, dtype: str):
    model = build(spec_of(overrides), device="cpu", dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@torch.no_grad()
def check_texts_alone(model) -> None:
    """Assert that three texts packed into a row, and the outer ones of them padded, give what each gives alone."""
    close = {"atol": 2e-5, "rtol": 1e-5}
    ids = torch.randint(0, 67, (1, 14), generator=torch.Generator().manual_seed(2))
    alone = [model(ids[:, part]).logits for part in (slice(0, 7), slice(7, 9), slice(9, 14))]
    documents = torch.tensor([[0] * 7 + [1] * 2 + [2] * 5])
    torch.testing.assert_close(model(ids, documents=documents).logits, torch.cat(alone, 1), **close)
    for number, part in ((0, slice(0, 7)), (2, slice(9, 14))):
        torch.testing.assert_close(model(ids, documents == number).logits[:, part], alone[number], **close)


def name(overrides: list[str]) -> str:
    """Make a test's label."""
    if overrides in (CONVOLVED, DEEP):
        return "convolved-outputs" if overrides == CONVOLVED else "attention-residuals"
    if overrides == MODULES:
        return "looped-modules"
    if overrides in (LOOPED, TOLD):
        return "looped" if overrides == LOOPED else "looped-with-messages"
    if overrides in (MIXED, LENT):
        return "mixed-pattern" if overrides == MIXED else "lent-keys"
    return ",".join(overrides[:2]).split("={")[0]
