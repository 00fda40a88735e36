"""Tiny writers of every kind that the grammar can say, their weights so loud that one key too many shows."""

import functools
import string

import pytest
import torch

from support.packaged_specs import load, make_loud
from support.tiny_decoders import COMBINATIONS, TINY
from support.tiny_models import needs
from support.tiny_seq2seq import ALIBI, BART, BIASED, MERGED, MODERN, NEAR, PREFIX, SINES, T5, UMT5
from zoo.data.tokenizer import Tokenizer
from zoo.generation.prompt_towers import find_writer
from zoo.run.builder import build
from zoo.sampling.guide import GuideCompiler

INDEX = ["index_top_k=5", "index_n_heads=8", "index_head_dim=16"]
COMPRESSED = ["window=5", "q_lora_rank=10", "o_groups=2", "o_lora_rank=6"]
LONG = "max_seq_len=92"
MAMBA2 = "n_heads:4,head_dim:8,d_state:8"
MIXED = {
    "gemma-like": [
        "pattern=[near*2,layer]",
        "+layers={near:{attention:{window:5},position:{theta:100.0}}}",
        "n_layers=3",
    ],
    "two windows": ["pattern=[near,far]", "+layers={near:{attention:{window:5}},far:{attention:{window:20}}}"],
    "chunk": ["+attention={window:8,window_kind:chunked}"],
    "chunk beyond a page": ["+attention={window:24,window_kind:chunked}"],
    "chunks and full": ["pattern=[near,layer]", "+layers={near:{attention:{window:8,window_kind:chunked}}}"],
    "window of a page": ["attention=sliding", "window=16"],
    "window beyond a page": ["attention=sliding", "window=17"],
    "capacity": ["ffn=moe", "router.capacity=3"],
    "hashed moe": ["ffn=moe", "router=hash"],
    "capacity and window": ["ffn=moe", "router.capacity=5", "attention=sliding", "window=5"],
    "mla and window": [
        *("attention=mla", "pattern=[near,layer]"),
        "+layers={near:{attention:{kind:gqa,n_heads:4,n_kv_heads:2,head_dim:8,window:5,position:{kind:none}}}}",
    ],
    "latents of a window": [
        *("attention=mla", "+attention.rope_norm=true", "pattern=[near,layer]", "n_layers=3"),
        "+layers={near:{n_heads:2,attention:{window:5,kv_lora_rank:14}}}",
    ],
    "dsa gated": [
        "attention=dsa",
        *INDEX,
        "q_lora_rank=10",
        "+attention={gate:{over:channel,reads:latent},raw_latent:true,sinks:true}",
    ],
    "dsa pooled": ["attention=dsa_pooled", "index_top_k=8", *INDEX[1:], "index_pool=4"],
    "dsa shared and lent": [
        *("attention=dsa", *INDEX, "position.rotary_dim=8", "+position.learned=true", "n_layers=4"),
        "+attention={tempering:{kind:scalable_softmax},indexer:{tempering:{kind:scalable_softmax}}}",
        "pattern=[layer,reader,taking]",
        "+layers={reader:{attention:{kv_from:layer}},taking:{attention:{kv_from:layer,indexer:{kind:shared,top_k:5}}}}",
    ],
    "qsa": ["attention=qsa", "index_top_k=8", *INDEX[1:], "index_pool=4"],
    "msa": ["attention=msa", "index_n_heads=2", "index_head_dim=16", "index_block_size=6", "index_top_blocks=2"],
    "csa": ["attention=csa", *INDEX, *COMPRESSED, "compress_rate=3"],
    "hca": ["attention=hca", *COMPRESSED, "compress_rate=2"],
    "csa, hca and window": [
        *("attention=csa", *INDEX, *COMPRESSED, "compress_rate=2", "pattern=[near,layer,heavy]", "n_layers=3"),
        "+layers={near:{attention:{compressor:null,indexer:null}},"
        "heavy:{attention:{indexer:null,compressor:{kind:disjoint,rate:2}}}}",
    ],
    "lent keys": [
        "pattern=[near,layer,reader,near_reader]",
        "+layers={near:{attention:{window:5}},reader:{attention:{kv_from:layer}},"
        "near_reader:{attention:{window:5,kv_from:near}}}",
        "n_layers=6",
    ],
    "lent values": [
        *("attention=rwkv7", "position=none", "+attention.value_rank=3", "+attention.values_from=first"),
        *("pattern=[first,layer*2]", "n_layers=3", "+layers={first:{attention:{value_rank:null,values_from:null}}}"),
    ],
    "layer inputs": [
        "block=sandwich",
        "n_layers=2",
        "+embedding.per_layer={kind:tokens,vocab_size:40,n_layers:2,width:6,norm:{kind:rmsnorm}}",
        "+block.layer_input={kind:gated,width:6,activation:{kind:silu},norm:{kind:rmsnorm}}",
    ],
    "n-grams": ["block=hyper_ngrams", *needs("block=hyper_ngrams")],
    "n-grams and window": [
        *("block=hyper_ngrams", *needs("block=hyper_ngrams"), "pattern=[near,layer]"),
        "+layers={near:{attention:{window:5},block:{ngrams:null}}}",
    ],
    "side by side": ["attention=side_by_side"],
    "two attentions": [
        *("block=shortcut", "attention=sliding", "window=5", "ffn=moe", "zero_experts=1", "router.capacity=3"),
    ],
    "shared block": ["block=shared_attention", "attention=mamba2", "n_layers=2"],
    "two states": [
        *("block=shortcut", "pattern=[state,layer]", "n_layers=3"),
        f"+layers={{state:{{attention:{{kind:mamba2,{MAMBA2}}}}}}}",
    ],
    "convolved": ["+attention.short_conv=4"],
    "convolved latents": ["attention=mla", "+attention.short_conv=4"],
    "convolved window": ["attention=sliding", "window=5", "+attention.short_conv=3"],
    "cca": ["attention=cca", "attention.bias=true", "+attention.token_width=3"],
    "cca window": ["attention=cca", "+attention.window=5", "+attention.head_width=4"],
    "averaged moe": [
        *("ffn=moe", "router=mlp_topk", "d_router=12", "+router.depth_average=true", "null_experts=1"),
        *("router.capacity=3", "pattern=[first,layer*2]", "n_layers=3"),
        *("+layers={first:{router:{depth_average:false}}}", "+block.residual={kind:affine}"),
    ],
    "relative logits, convolved moe": [
        *(
            "position=relative_logits",
            "relative_extent=12",
            "relative_width=5",
            "n_layers=3",
            "pattern=[near,layer,near]",
        ),
        "+attention={short_conv:{width:4,over:kv,residual:true},scale:0.2}",
        "+attention.tempering={kind:log_ratio,floor:6,scale:0.3}",
        "+layers={near:{attention:{window:5,tempering:null},position:{n_heads:2,extent:5},n_heads:2,n_kv_heads:1}}",
        *("+block.out_conv={d_model:24,width:3}", "ffn=moe", "router=sigmoid_topk", "+router.n_shared=2"),
        "+shared_expert={kind:gated,d_ff:12,activation:{kind:silu},bias:false}",
    ],
    "attention residuals": [
        *("block=attention_residual", "attention=dynamic_gqa", "conv_width=4", "position=relative_logits"),
        *("relative_extent=12", "relative_width=5", "n_layers=5", "pattern=[first,near,opens,layer,near]"),
        "+attention={separate_inputs:true,short_conv:{scale:0.4},gate:true,qk_norm:{norm:{kind:l2_clip},over:heads}}",
        "+attention.tempering={kind:log_ratio,floor:6,scale:0.3}",
        "+attention.k_norm={kind:l2_clip,threshold:3.0,weight:false}",
        *("+block.out_conv={d_model:24,width:3,scale:0.6}", "+block.opens=false"),
        "+layers={near:{attention:{window:5,tempering:null,separate_inputs:false,short_conv:{dynamic:false}},"
        "n_heads:2,n_kv_heads:1,"
        "position:{n_heads:2,extent:5}},opens:{block:{opens:true}},first:{block:{opens:true,reads_earlier:false}}}",
    ],
    "looped": [
        *("n_layers=6", "pattern=[near,layer,near,layer,near,near]", "+loop={start:1,end:3,passes:2}"),
        "+layers={near:{attention:{window:5}}}",
    ],
    "looped modules": [
        *("n_layers=6", "pattern=[near,last,last,near,last,last]", "+attention.qk_norm={kind:l2_clip}"),
        *("attention.qk_norm.over=heads", "+loop={kind:hierarchical,end:3,low_layers:2}"),
        "+layers={near:{attention:{window:5}},last:{block:{around_ffn:{stream_norm:rmsnorm}}}}",
    ],
    "looped with messages": [
        *("block=attention_residual", "attention=dynamic_gqa", "conv_width=4", "n_layers=6"),
        *("+loop={kind:restarting,start:1,end:3,passes:2}", "pattern=[first,round,near,again,near_again,opens]"),
        "+attention={separate_inputs:true,short_conv:{scale:0.4},gate:true,qk_norm:{norm:{kind:l2_clip},over:heads}}",
        "+layers={near:{n_heads:2,n_kv_heads:1,attention:{window:5,short_conv:{dynamic:false}},block:{joint_read:true}},"
        "near_again:{n_heads:2,n_kv_heads:1,attention:{window:5,short_conv:{dynamic:false}},block:{joint_read:true,"
        "messages:{kind:low_rank,rank:3}}},again:{block:{messages:{kind:low_rank,rank:3}}},round:{},opens:{},"
        "first:{block:{reads_earlier:false}}}",
    ],
    "channel mix": ["ffn=channel_mix"],
    "ntk": ["position=rope_dynamic", "original_max_seq_len=20"],
}
"""Layers of several reaches, states that count, and positions that end a cache."""
MIXERS = {
    "mamba": "d_model:24",
    "mamba2": MAMBA2,
    "gated_delta": "n_k_heads:2,n_v_heads:4,head_k_dim:8,head_v_dim:8,norm:{kind:rmsnorm}",
    "kda": "n_heads:2,head_dim:8",
    "lightning": "n_heads:2,head_dim:8",
    "gla": "n_heads:2,head_k_dim:8,head_v_dim:8",
    "rg_lru": "d_inner:24,n_heads:2",
    "rwkv": "d_model:24,d_inner:16",
    "rwkv7": "d_model:24,n_heads:2,head_dim:8",
    "mlstm": "n_heads:2,head_k_dim:8,head_v_dim:8",
    "retention": "n_heads:2,head_k_dim:8,head_v_dim:8,position:{kind:none}",
    "short_conv": "d_inner:24",
}
HYBRIDS = {f"{mixer} and {others}": (mixer, others) for mixer in MIXERS for others in ("gqa", "sliding")}
SEQ2SEQ = {"t5": T5, "umt5": UMT5, "bart": BART, "sines": SINES, "modern": MODERN, "merged": MERGED}
PREFIX_LM = {"prefix": PREFIX, "prefix alibi": ALIBI, "prefix t5": BIASED, "prefix window": NEAR}
PLAIN = {" ".join(overrides): overrides for overrides in COMBINATIONS}
KINDS = [*PLAIN, *MIXED, *HYBRIDS, *PREFIX_LM, *SEQ2SEQ]
"""The names of all kinds."""
SAME_CACHE = ("activation=", "norm=", "block=", "ffn=")
"""Choices that change nothing about what is kept: each gets fewer schedules."""
SECOND = {name for number, name in enumerate(HYBRIDS) if number % 4 in (1, 2)}
"""Of each recurrent mixer one of its two hybrids, by turns."""


def choose(kinds, one_in=1):
    """Kinds as parameters. Those that keep the same as others, and of each recurrent mixer one hybrid, are slow; of the
    rest all but the first of every `one_in`."""
    slow = {kind for kind in kinds if kind.startswith(SAME_CACHE)} | SECOND
    slow |= set(kinds) - set([kind for kind in kinds if kind not in slow][::one_in])
    return [pytest.param(kind, marks=pytest.mark.slow if kind in slow else ()) for kind in kinds]


@functools.cache
def make(kind: str):
    """Make the model of a kind, in eval mode; every parameter of it is random. Shared: it must not be changed."""
    if kind in SEQ2SEQ or kind in PREFIX_LM:
        spec = load({**(SEQ2SEQ.get(kind) or PREFIX_LM[kind]), "max_seq_len": 92})
    elif kind in HYBRIDS:
        spec = load(TINY, _hybrid(*HYBRIDS[kind]))
    else:
        spec = load(TINY, [LONG, *(PLAIN.get(kind) or MIXED[kind])])
    model = make_loud(build(spec, device="cpu", dtype="fp32").eval(), (53, 61, 92, 94))
    if kind == "sines":  # a token that has no position is for padding: written in a cache it counts, as in transformers
        model.state_dict()["decoder.head.offset"][spec.decoder.position.skip_id] = -40
    return model


def _hybrid(mixer: str, others: str) -> list[str]:
    window = ["attention=sliding", "window=5"] if others == "sliding" else []
    state = f"+layers={{state:{{attention:{{kind:{mixer},{MIXERS[mixer]}}}}}}}"
    return [LONG, *window, "pattern=[state,layer]", state, "n_layers=3"]


@functools.cache
def make_draft(kind: str):
    """Make a model that guesses for a kind: the kind's own with noise on its weights, so that some guesses hold; where
    its states or its source forbid that, any decoder of the vocabulary."""
    writer = find_writer(make(kind).spec)
    unlike = kind in SEQ2SEQ or kind in PREFIX_LM or any(block.state() for block in writer.blocks.values())
    if unlike or writer.cacheable_until is not None:
        spec = load(TINY, [LONG, f"vocab_size={writer.vocab_size}"])
        return make_loud(build(spec, device="cpu", dtype="fp32").eval(), (writer.vocab_size, 92))
    model, generator = build(writer, device="cpu", dtype="fp32").eval(), torch.Generator().manual_seed(2)
    model.load_state_dict(make(kind).state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return model


@functools.cache
def make_guides(vocab: int):
    """Compile some grammars over a vocabulary whose tokens from 2 on are letters."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(
        models.BPE({letter: number for number, letter in enumerate("01" + string.ascii_letters[:-2])}, [])
    )
    backend.decoder = decoders.ByteFallback()
    backend.add_special_tokens(["<|endoftext|>"])
    compiler = GuideCompiler(Tokenizer(backend), vocab)
    return [compiler.compile("regex", text) for text in ("(ab|c[d-k]){1,6}[x-z]", "[A-M]{3,9}", "a(bc)*d?")]
