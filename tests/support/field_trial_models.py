"""The models whose fields are set to other values (`bites`), each with the keys and nodes of it that are tried."""

from __future__ import annotations

import re

from support.loud_outputs import VOCAB
from support.tiny_models import AVERAGED, DEEP, choices, needs
from zoo.grammar import AXES, TOWERS
from zoo.paths import conf_dir


def read_by(axis: str, choice: str) -> list[str]:
    """List the top-level keys that a packaged choice reads, axes left out."""
    text = (conf_dir() / axis / f"{choice}.yaml").read_text()
    names = [name for group in re.findall(r"\$\{(?:up|or):([^}]*)\}", text) for name in group.split(",")]
    return [
        name for name in dict.fromkeys(names) if name.isidentifier() and name not in (*AXES, "null", "true", "false")
    ]


TOP = "keys vocab_size d_model n_layers max_seq_len final_norm out_width out_bias shared_layers prefix_lm"
TOP_OF_ENCODER = TOP.replace(" prefix_lm", "")

SMALL = ("n_layers=2", "d_model=32", "n_heads=4", "head_dim=8", "d_ff=48", f"vocab_size={VOCAB}", "max_seq_len=64")
SMALL_T5 = (*SMALL, "n_buckets=8", "max_distance=20")
SEQ2SEQ = "keys start_id " + " ".join(
    f"{tower}.{key}"
    for tower in TOWERS
    for key in (
        "vocab_size",
        "d_model",
        "n_layers",
        "max_seq_len",
        "n_heads",
        "head_dim",
        "d_ff",
        "norm_eps",
        "final_norm",
    )
)
EMBEDDING = "embedding={norm: {kind: layernorm}, n_types: 2, width: 16, project_bias: true}"
RMS = "{kind: rmsnorm}"
SHARED = "{kind: gated, d_ff: 24, activation: {kind: silu}}"
LONG = (
    "{kind: longrope, short_factor: [1,1.1,1.3,2], long_factor: [1,1.5,2,4], original_max_seq_len: 16, max_seq_len: 64}"
)
UNTIED = ("decoder.embedding.tied=null", "decoder.embedding.tied=foo", "decoder.embedding.width=16")
POOLER = "pooler={kind: first_token}"
LAST = "{kind: sequence, labels: 3, pooling: last}"
HEAD = "head={kind: mlm, activation: {kind: gelu}, norm: {kind: layernorm}}"

WIDE = ("head_dim=16", "original_max_seq_len=3600")  # enough pairs to stand before, on and behind YaRN's ramp
SHOWN_BY = {
    "position=rope_yarn": WIDE,
    "position=rope_proportional": ("position.scaling.share=0.75",),
    "position=rope_llama3": ("head_dim=16", "original_max_seq_len=40"),
    **{
        f"attention={name}": ("attention.chunk_size=16",)
        for name in (
            "mamba2",
            "gated_delta",
            "delta_net",
            "kda",
            "lightning",
            "gla",
            "rg_lru",
            "rwkv",
            "rwkv7",
            "mlstm",
            "retention",
        )
    },  # of 40 tokens
}
for mixer in ("rwkv7", "lightning"):
    SHOWN_BY[f"attention={mixer}"] += ("attention.norm_eps=1000.0",)  # beside values that are large
SHOWN_BY["attention=rg_lru"] = ("attention.chunk_size=12",)  # rows of 16 and of 32 are as dear
SHOWN_BY["norm=affine"] = ("block.residual_scale=0.001",)  # without which what nothing divides is too large
SHOWN_BY["position=t5_globals"] = ("window=40",)  # farther than distances that have a bucket each
SHOWN_BY["position=relative_logits"] = ("relative_extent=8",)
SHOWN_BY["attention=transformer_xl"] = ("attention.max_distance=8",)  # of 40 tokens
SHOWN_BY["attention=side_by_side"] = ("attention.recurrent.chunk_size=16",)
SHOWN_BY |= {
    f"attention={name}": ("attention.indexer.norm={kind: layernorm, eps: 1.0}",) for name in ("dsa", "dsa_pooled")
}
SHOWN_BY["attention=qsa"] = ("attention.indexer.norm={kind: rmsnorm, eps: 8.0}",)
SHOWN_BY["attention=csa"] = ("attention.indexer.compressor.norm={kind: rmsnorm, eps: 1.0}",)
SHOWN_BY |= {f"block={name}": ("position=none",) for name in choices("block") if name != "post_conv"}  # for any mixer
SHOWN_BY["block=hyper_ngrams"] = ("position=none", "block.ngrams.width=20")  # for another number of tables
for block in ("pre", "sandwich", "altup"):  # whose `norm` is none of those that ffn_norm and out_norm may be
    SHOWN_BY[f"block={block}"] = ("position=none", "norm_eps=0.1")
"""What else a choice needs for its fields to show."""

TAKING = ("pattern=[layer,taking]", "layers={taking: {attention: {indexer: {kind: shared, top_k: 4}}}}")
"""Layers of which every second one takes the choice of keys of the one before."""

BASES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "sentences": ("llama-tiny", ("kind=encoder", "attention=mha", HEAD, "pooler={kind: next_sentence}"), ("pooler",)),
    "decoder": ("llama-tiny", ("head.tied=false",), (TOP, "embedding", "head", "init", POOLER)),
    "tied decoder": ("llama-tiny", (), (TOP, "embedding", "head")),
    "scaled init": ("llama-tiny", ("ffn=moe", "init={kind: scaled, wider: 4.0, deeper: 2.0}"), ("init",)),
    "learned embedding": ("llama-tiny", (EMBEDDING, "position=learned", "head.tied=false"), ("embedding",)),
    "mlm encoder": (
        "llama-tiny",
        ("kind=encoder", "attention=mha", HEAD, "pooler={kind: first_token}"),
        (TOP_OF_ENCODER, "embedding", "head", "pooler", "pooler=null"),
    ),
    "token dropout": ("llama-tiny", ("kind=encoder", "attention=mha", HEAD, "+embedding.mask_id=7"), ("embedding",)),
    "bottleneck": ("llama-tiny", ("block=bottleneck", "block.width=12", "block.n_ffns=3", "position=none"), ("block",)),
    "narrow table": (
        "llama-tiny",
        ("kind=encoder", "attention=mha", f"{HEAD[:-1]}, tied: false, table_width: 16}}"),
        ("head",),
    ),
    "trigram": (
        "llama-tiny",
        (
            *("kind=encoder", "attention=mha", f"{HEAD[:-1]}, table_width: 16}}"),
            "embedding={width: 16, project_first: true, project_bias: true, trigram: true, n_types: 2}",
        ),
        ("embedding", "head"),
    ),
    "stored frequencies": ("llama-tiny", ("position.rotary_dim=4",), ("position",)),
    "mlm apart": (
        "llama-tiny",
        ("kind=encoder", "attention=mha", HEAD, "head.tied=false"),
        ("keys out_width", "head", POOLER),
    ),
    "projected": (
        "llama-tiny",
        ("kind=encoder", "attention=mha", HEAD, "head.tied=false", "out_width=16"),
        ("keys out_bias",),
    ),
    "projected decoder": ("llama-tiny", ("head.tied=false", "out_width=16"), ("keys out_bias",)),
    **{
        f"{kind} head": (
            "llama-tiny",
            ("kind=encoder", "attention=mha", "~head.tied", f"head={{kind: {kind}, {own}}}"),
            ("head",),
        )
        for kind, own in {
            "sequence": "labels: 3, activation: {kind: tanh}",
            "token": "labels: 3, activation: {kind: gelu}",
            "regression": "n_outputs: 2, pooling: mean, activation: {kind: gelu}",
            "replaced": "activation: {kind: gelu}",
            "question_span": "question_id: 7, activation: {kind: gelu}, norm: {kind: layernorm}",
        }.items()
    },
    "headless": (
        "llama-tiny",
        ("kind=encoder", "attention=mha", "~head.tied", "head.kind=none"),
        (TOP_OF_ENCODER, "head"),
    ),
    **{
        name: ("llama-tiny", (f"attention.{fields}",), ("attention",))
        for name, fields in {
            "normed heads": "qk_norm={kind: rmsnorm}",
            "clipped heads": "clip=0.8",
            "tempered": "tempering={kind: log, floor: 4, first: 1}",
            "tempered by a power": "tempering={kind: power, floor: 4}",
            "tempered by a ratio": "tempering={kind: log_ratio, floor: 4}",
            "biased": "bias=true",
            "gated heads": "gate=true",
            "normed outputs": "out_norm={kind: dyt}",
            "convolved": "short_conv=3",
        }.items()
    },
    "lent values": (
        "llama-tiny",
        (
            *("attention=rwkv7", "position=none", "attention.value_rank=4", "attention.values_from=first"),
            *("pattern=[first,layer]", "layers={first: {attention: {value_rank: null, values_from: null}}}"),
        ),
        (
            "attention.value_rank=6",
            "attention.value_rank=null",
            "attention.values_from=layer",
            "attention.decay_rank=9",
        ),
    ),
    "dynamic attention": (
        "llama-tiny",
        ("attention=dynamic_gqa", "attention.qk_norm={kind: l2_clip, threshold: 0.2}", "conv_width=3"),
        ("attention", "attention.k_norm={kind: l2_clip, threshold: 0.1}", "attention.k_norm={kind: rmsnorm}"),
    ),
    "static convolution": (
        "llama-tiny",
        ("attention=dynamic_gqa", f"attention={{short_conv: {{dynamic: false}}, token_sinks: false, out_norm: {RMS}}}"),
        ("attention",),
    ),
    "gated dynamic attention": (
        "llama-tiny",
        ("attention=dynamic_gqa", f"attention={{gate: true, clip: 0.8, qk_norm: {RMS}}}"),
        ("attention.clip={bound: 0.8, normed: true}", "attention.gate={bias: true}", "attention.gate=softplus"),
    ),
    "attention residuals": (
        "llama-tiny",
        (*DEEP, "conv_width=2"),
        ("attention.separate_inputs=false", "block", "block.depth_read={norm: {kind: layernorm}}", "position"),
    ),
    "looped": ("llama-tiny", ("n_layers=11", "+loop={start: 1, end: 3, passes: 2}"), ("loop",)),
    "two modules": (
        "llama-tiny",
        ("n_layers=20", "+loop={kind: hierarchical, end: 3, passes: 2, low_layers: 1, low_passes: 2}"),
        ("loop", "block.around_ffn.stream_norm=rmsnorm"),
    ),
    "joint reads": (
        "llama-tiny",
        ("block=attention_residual", "attention=dynamic_gqa", "conv_width=2", "attention.separate_inputs=true"),
        ("block.joint_read=true",),
    ),
    "looped with messages": (
        "llama-tiny",
        (
            *("block=attention_residual", "n_layers=4", "pattern=[first,round,layer,last]", "norm_eps=0.1"),
            "+loop={kind: restarting, start: 1, end: 2, passes: 2}",
            "block.messages={kind: low_rank, rank: 6, norm: {kind: rmsnorm, weight: false, eps: 0.1}}",
            "+layers={first: {block: {messages: null}}, round: {block: {messages: null}}}",
            "+layers.last={block: {messages: null}}",
        ),
        ("loop", "block"),
    ),
    "convolved latents": ("llama-tiny", ("attention=mla", "attention.short_conv=3"), ("attention",)),
    "convolved outputs": ("llama-tiny", ("block.out_conv={d_model: 32, width: 3}", "norm_eps=0.1"), ("block",)),
    "scored shared experts": (
        "llama-tiny",
        ("ffn=moe", "router=sigmoid_topk", "router.n_shared=2", f"shared_expert={SHARED}"),
        ("router", "ffn"),
    ),
    "softplus of shared experts": (
        "llama-tiny",
        ("ffn=moe", "router=sqrtsoftplus_topk", "router.n_shared=2", f"shared_expert={SHARED}"),
        ("router.n_shared=1",),
    ),
    "gated latents": ("llama-tiny", ("attention=mla", "q_lora_rank=10", "attention.gate=true"), ("attention",)),
    "joined": (
        "llama-tiny",
        (
            *("attention=mamba2", "block=shared_attention"),
            f"block.attention.softmax={{qk_norm: {RMS}, clip: 0.8, gate: true, out_norm: {RMS}}}",
        ),
        ("block",),
    ),
    "normed clip": ("llama-tiny", ("attention={qk_norm: {kind: rmsnorm}, clip: 0.8}",), ("attention",)),
    "shared expert": ("llama-tiny", ("ffn=moe", f"ffn.shared={SHARED}"), ("ffn",)),
    "normed branches": (
        "llama-tiny",
        ("ffn=moe", f"ffn.shared={{expert: {SHARED}, branch_norm: {RMS}}}", "block=sandwich", "norm_eps=0.1"),
        ("ffn", "block"),
    ),
    "gated residual": ("llama-tiny", ("block=sandwich", "block.residual={kind: gated}", "norm_eps=0.1"), ("block",)),
    "latent experts": (
        "llama-tiny",
        ("ffn=moe", "ffn.latent={width: 12, norm: {kind: rmsnorm}}", "ffn.expert_norm={kind: dyt}"),
        ("ffn", "ffn.latent=null"),
    ),
    "convolved heads": ("llama-tiny", ("attention=cca", "attention.window=9", "bias=true"), ("attention",)),
    "averaged routers": (
        "llama-tiny",
        (*AVERAGED, "block.residual={kind: affine}"),
        ("router", "ffn.null_experts=2", "block.residual=null", "layers.first.router.depth_average=true"),
    ),
    "grouped mlp": (
        "llama-tiny",
        ("ffn=moe", "router=mlp_topk", "d_router=12", "router.groups={count: 2, open: 1}"),
        ("router",),
    ),
    "normed router": ("llama-tiny", ("ffn=moe", "router.input_norm={kind: rmsnorm}"), ("router",)),
    "layer inputs": (
        "llama-tiny",
        (
            "block=sandwich",
            "norm_eps=0.1",
            f"embedding.per_layer={{kind: tokens, vocab_size: {VOCAB}, n_layers: 3, width: 6, norm: {RMS}}}",
            "block.layer_input={kind: gated, width: 6, activation: {kind: silu}, norm: {kind: rmsnorm}}",
        ),
        ("embedding", "block"),
    ),
    "projected layer inputs": (
        "llama-tiny",
        (
            "block=sandwich",
            f"embedding.per_layer={{kind: projection, n_layers: 3, width: 6, norm: {RMS}}}",
            "block.layer_input={kind: gated, width: 6, activation: {kind: silu}, norm: {kind: rmsnorm}}",
        ),
        ("embedding",),
    ),
    "streams": (
        "llama-tiny",
        (
            *("block=altup", "+streams={kind: altup, count: 4}", "block.correct_scale=true", "norm_eps=0.1"),
            f"embedding.per_layer={{kind: tokens, vocab_size: {VOCAB}, n_layers: 3, width: 6, norm: {RMS}}}",
            "block.layer_input={kind: gated, width: 6, activation: {kind: silu}, norm: {kind: rmsnorm}}",
        ),
        ("streams", "block"),
    ),
    "independent streams": (
        "llama-tiny",
        ("block=hyper", "block.connection={kind: independent}", "+streams={kind: mean, count: 4}"),
        ("block", "streams"),
    ),
    "gated streams": (
        "llama-tiny",
        (
            *("block=hyper", "block.connection={kind: gated, rank: 6}", "norm_eps=0.1"),
            f"+streams={{kind: gated, count: 4, rank: 6, norm: {RMS}}}",
        ),
        ("block", "streams"),
    ),
    "mixed streams": (
        "llama-tiny",
        ("block=hyper", "block.connection.iterations=3", "+streams={kind: weighted, count: 4, norm_eps: 1.0e+4}"),
        ("block", "streams"),
    ),
    "grouped experts": ("llama-tiny", ("ffn=moe", "router.groups={count: 2, open: 1}"), ("router",)),
    "grouped sigmoid": (
        "llama-tiny",
        ("ffn=moe", "router=sigmoid_topk", "n_experts=8", "top_k=3", "router.groups={count: 4, open: 2}"),
        ("router",),
    ),
    "grouped softplus": (
        "llama-tiny",
        ("ffn=moe", "router=sqrtsoftplus_topk", "n_experts=8", "top_k=3", "router.groups={count: 4, open: 2}"),
        ("router",),
    ),
    "capacity": ("llama-tiny", ("ffn=moe", "router.capacity=3"), ("router",)),
    "longrope": ("llama-tiny", (f"position.scaling={LONG}",), ("position",)),
    "mscale": (
        "llama-tiny",
        ("position=rope_yarn", *WIDE, "position.scaling={mscale: 0.7, mscale_all_dim: 0.4}"),
        ("position",),
    ),
    "absolute t5": ("llama-tiny", ("position=t5", "position.absolute={kind: learned, max_seq_len: 64}"), ("position",)),
    "offset": ("llama-tiny", ("position=learned", "position.offset=2"), ("position",)),
    "offset waves": ("llama-tiny", ("position=sinusoidal", "position.offset=2"), ("position",)),
    "inner norm": (
        "llama-tiny",
        ("attention=mamba", "position=none", "attention.inner_norm={kind: rmsnorm}"),
        ("attention",),
    ),
    "low-rank queries": ("llama-tiny", ("attention=mla", "position=none", "q_lora_rank=10"), ("attention",)),
    "chosen keys": (
        "llama-tiny",
        ("attention=dsa", *needs("attention=dsa"), *SHOWN_BY["attention=dsa"], *TAKING),
        ("attention", "layers.taking.attention.indexer"),
    ),
    "chosen blocks": (
        "llama-tiny",
        (
            *("attention=msa", "index_n_heads=4", "index_head_dim=16", "index_block_size=4", "index_top_blocks=3"),
            "attention.indexer.norm={kind: rmsnorm, eps: 8.0}",
        ),
        ("attention.indexer",),
    ),
    "post-norm": ("llama-tiny", ("block=post",), ("keys final_norm", "block")),
    "t5": ("t5-small", SMALL_T5, (SEQ2SEQ, TOP, "cross", "embedding", "head", *UNTIED, "wraps=true")),
    "wide source": (
        "t5-small",
        (*SMALL_T5, "+encoder.d_model=48", "+cross.memory_width=48", "decoder.embedding.tied=null"),
        ("keys encoder.d_model", "cross"),
    ),
    "merged": (
        "t5-small",
        (*SMALL, "cross=merged", "~cross.scale", "position=rope", "~n_buckets", "~max_distance"),
        (SEQ2SEQ, "cross", "attention"),
    ),
    "two sides": ("llama-tiny", ("kind=encoder", "attention=sliding", "window=6"), ("attention",)),
    "t5 that labels": ("t5-small", (*SMALL_T5, "~head", f"+head={LAST}"), ("keys start_id", "wraps=true", "head")),
    "last token": ("llama-tiny", ("~head", f"+head={LAST}"), ("head",)),
}


def _choices() -> None:
    for axis in AXES:
        if axis == "cross":
            continue
        for choice in choices(axis):
            name = f"{axis}={choice}"
            keys = " ".join(["keys", *read_by(axis, choice)])
            BASES[name] = ("llama-tiny", (name, *needs(name), *SHOWN_BY.get(name, ())), (axis, keys))


_choices()
