"""Tiny models give transformers' own logits: an independent check of every axis that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import zoo

# Correct float32 kernels differ by 2e-6 to 2e-5; exact and tanh GELU by 1e-3, which a looser bound would let pass.
CLOSE = {"atol": 5e-5, "rtol": 0.0}
LENGTHS = (24, 17, 9)  # of the rows of a batch
VOCAB = 61


# ---------------------------------------------------------------- which of their tensors is which of ours


def turned(tensor: Tensor, heads: int) -> Sequence[Tensor]:
    return (tensor.t(),)  # GPT-2's Conv1D stores [in, out]; a bias stays as it is


def turned_thirds(tensor: Tensor, heads: int) -> Sequence[Tensor]:
    return tensor.t().chunk(3)


def thirds(tensor: Tensor, heads: int) -> Sequence[Tensor]:
    return tensor.chunk(3)


def thirds_of_heads(tensor: Tensor, heads: int) -> Sequence[Tensor]:
    return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, 3, -1)).unbind(1)]


def halves(tensor: Tensor, heads: int) -> Sequence[Tensor]:
    return tensor.chunk(2, dim=-2)


SPLITS: dict[str, Callable[[Tensor, int], Sequence[Tensor]]] = {
    "": lambda tensor, heads: (tensor,),
    **{each.__name__: each for each in (turned, turned_thirds, thirds, thirds_of_heads, halves)},
}

QKV = ".attention.q .attention.k .attention.v"

# A line is `ours …: theirs`, with how theirs is split where it holds several; a leading dot stands for the layer.
GPT2 = f"""
    embedding.tokens: transformer.wte
    position.table: transformer.wpe
    .attention_norm: transformer.h.#.ln_1
    {QKV}: transformer.h.#.attn.c_attn turned_thirds
    .attention.o: transformer.h.#.attn.c_proj turned
    .ffn_norm: transformer.h.#.ln_2
    .ffn.up: transformer.h.#.mlp.c_fc turned
    .ffn.down: transformer.h.#.mlp.c_proj turned
    norm: transformer.ln_f"""

GPT1 = GPT2.replace("wte", "tokens_embed").replace("wpe", "positions_embed")

GPTJ = """
    embedding.tokens: transformer.wte
    .attention_norm: transformer.h.#.ln_1
    .attention.q: transformer.h.#.attn.q_proj
    .attention.k: transformer.h.#.attn.k_proj
    .attention.v: transformer.h.#.attn.v_proj
    .attention.o: transformer.h.#.attn.out_proj
    .ffn.up: transformer.h.#.mlp.fc_in
    .ffn.down: transformer.h.#.mlp.fc_out
    norm: transformer.ln_f
    head.out: lm_head"""

BLOOM = f"""
    embedding.tokens: transformer.word_embeddings
    embedding.norm: transformer.word_embeddings_layernorm
    .attention_norm: transformer.h.#.input_layernorm
    {QKV}: transformer.h.#.self_attention.query_key_value thirds_of_heads
    .attention.o: transformer.h.#.self_attention.dense
    .ffn_norm: transformer.h.#.post_attention_layernorm
    .ffn.up: transformer.h.#.mlp.dense_h_to_4h
    .ffn.down: transformer.h.#.mlp.dense_4h_to_h
    norm: transformer.ln_f"""

NEOX = f"""
    embedding.tokens: gpt_neox.embed_in
    .attention_norm: gpt_neox.layers.#.input_layernorm
    {QKV}: gpt_neox.layers.#.attention.query_key_value thirds_of_heads
    .attention.o: gpt_neox.layers.#.attention.dense
    .ffn_norm: gpt_neox.layers.#.post_attention_layernorm
    .ffn.up: gpt_neox.layers.#.mlp.dense_h_to_4h
    .ffn.down: gpt_neox.layers.#.mlp.dense_4h_to_h
    norm: gpt_neox.final_layer_norm
    head.out: lm_head"""

MPT = f"""
    embedding.tokens: transformer.wte
    .attention_norm: transformer.blocks.#.norm_1
    {QKV}: transformer.blocks.#.attn.Wqkv thirds
    .attention.o: transformer.blocks.#.attn.out_proj
    .ffn_norm: transformer.blocks.#.norm_2
    .ffn.up: transformer.blocks.#.ffn.up_proj
    .ffn.down: transformer.blocks.#.ffn.down_proj
    norm: transformer.norm_f"""

LLAMA = """
    embedding.tokens: model.embed_tokens
    .attention_norm: model.layers.#.input_layernorm
    .attention.q: model.layers.#.self_attn.q_proj
    .attention.k: model.layers.#.self_attn.k_proj
    .attention.v: model.layers.#.self_attn.v_proj
    .attention.o: model.layers.#.self_attn.o_proj
    .attention.q_norm: model.layers.#.self_attn.q_norm
    .attention.k_norm: model.layers.#.self_attn.k_norm
    .ffn_norm: model.layers.#.post_attention_layernorm
    .ffn.gate: model.layers.#.mlp.gate_proj
    .ffn.up: model.layers.#.mlp.up_proj
    .ffn.down: model.layers.#.mlp.down_proj
    norm: model.norm
    head.out: lm_head"""

MIXTRAL = f"""{LLAMA}
    .ffn.router.gate: model.layers.#.mlp.gate
    .ffn.experts.gate .ffn.experts.up: model.layers.#.mlp.experts.gate_up_proj halves
    .ffn.experts.down: model.layers.#.mlp.experts.down_proj"""

GRANITE_MOE = f"""{LLAMA}
    .ffn.router.gate: model.layers.#.block_sparse_moe.router
    .ffn.experts.gate .ffn.experts.up: model.layers.#.block_sparse_moe.experts.gate_up_proj halves
    .ffn.experts.down: model.layers.#.block_sparse_moe.experts.down_proj
    .ffn.shared.gate .ffn.shared.up: model.layers.#.shared_mlp.input_linear halves
    .ffn.shared.down: model.layers.#.shared_mlp.output_linear"""

OUT_NORMS = "model.layers.#.post_attention_layernorm\n    .ffn_norm: model.layers.#.post_feedforward_layernorm"
OLMO2 = LLAMA.replace(".ffn_norm: model.layers.#.post_attention_layernorm", f".attention_norm: {OUT_NORMS}")

GEMMA2 = f"""{LLAMA.replace("ffn_norm: model.layers.#.post_attention", "ffn_norm: model.layers.#.pre_feedforward")}
    .attention_out_norm: model.layers.#.post_attention_layernorm
    .ffn_out_norm: model.layers.#.post_feedforward_layernorm"""


def moved(table: str, reference: Any) -> dict[str, Tensor]:
    """The reference's parameters under our names. Every one of them must be taken, and each once."""
    left = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
    ours: dict[str, Tensor] = {}
    for i in range(reference.config.num_hidden_layers):
        for line in table.strip().splitlines():
            to, _, source = line.strip().partition(": ")
            source, _, split = source.partition(" ")
            for leaf in ("", ".weight", ".bias"):
                tensor = left.pop(source.replace("#", str(i)) + leaf, None)
                if tensor is not None:
                    names = [f"blocks.{i}{name}" if name[0] == "." else name for name in to.split()]
                    parts = SPLITS[split](tensor, reference.config.num_attention_heads)
                    ours |= {f"{name}{leaf or '.weight'}": part for name, part in zip(names, parts, strict=True)}
    assert not left, f"the table misses {sorted(left)}"
    return ours


# ---------------------------------------------------------------- the same model twice


@dataclass
class Case:
    """One of our packaged models made tiny by `overrides`, and the reference's configuration of the same model."""

    model: str
    config: Any
    table: str
    overrides: str


SIZES = f"n_layers=2 d_model=48 vocab_size={VOCAB} max_seq_len=64"
GPT_SIZES = f"{SIZES} n_heads=4 head_dim=12 d_ff=192"
LLAMA_SIZES = f"{SIZES} n_heads=4 n_kv_heads=2 head_dim=16 d_ff=56"


def config(kind: str, **fields: Any) -> Any:
    """A configuration of the reference's without special tokens, which a vocabulary this small has no room for."""
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return getattr(transformers, f"{kind}Config")(**{"vocab_size": VOCAB, **ends, **fields})


def gpt(kind: str, **fields: Any) -> Any:
    return config(kind, n_embd=48, n_layer=2, n_head=4, n_positions=64, **fields)


def llama(kind: str = "Llama", theta: float = 1e4, rope: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Two layers with heads wider than d_model / n_heads, where a family allows it."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"head_dim": 16, "intermediate_size": 56, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}
    parameters = {"rope_type": "default", "rope_theta": theta, **(rope or {})}
    return config(kind, **{**sizes, **more, **fields}, rope_parameters=parameters)


def scaled(kind: str, trained: int | None = None, model: str = "llama2-7b", theta: float = 1e4, **fields: Any) -> Case:
    """A Llama with scaled RoPE, its fields under the same names in both but for the length it was `trained` at."""
    rope, ours, limit = {"rope_type": kind, **fields}, dict(fields), 64
    if trained is not None:
        ours["original_max_seq_len"] = trained
        if kind == "dynamic":  # where the reference takes the limit for the trained length
            limit = trained
        else:
            rope["original_max_position_embeddings"], limit = trained, int(trained * fields["factor"])
    scaling = " ".join(f"++position.scaling.{name}={value}" for name, value in ours.items())
    tied = model == "llama3.2-1b"
    reference = llama(theta=theta, rope=rope, max_position_embeddings=limit, tie_word_embeddings=tied)
    return Case(model, reference, LLAMA, f"{LLAMA_SIZES} position=rope_{kind} {scaling}")


MSCALES = {"mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NARROW = f"{LLAMA_SIZES} n_kv_heads=4 head_dim=12"  # for families without a head_dim of their own
NARROW_HF = {"head_dim": 12, "num_key_value_heads": 4}
HALF = {"partial_rotary_factor": 0.5}
QK_NORM = "++attention.qk_norm={kind:rmsnorm,eps:1e-5}"
SHARED = "++ffn.shared={kind:gated,d_ff:40,activation:{kind:silu}}"
INTERLEAVED = "++position.interleaved=true"

# What the packaged models are made of.
PACKAGED = {
    "gpt2": Case("gpt2", gpt("GPT2"), GPT2, GPT_SIZES),
    "llama": Case("llama2-7b", llama(), LLAMA, LLAMA_SIZES),
    "llama with linear scaling": scaled("linear", factor=2.5),
    "llama with dynamic scaling": scaled("dynamic", trained=64, factor=3.0),
    "llama with yarn": scaled("yarn", trained=64, factor=4.0),
    "llama with yarn and both mscales": scaled("yarn", trained=256, factor=4.0, **MSCALES),
    "llama 3.2": scaled("llama3", trained=64, model="llama3.2-1b", theta=5e5, **LLAMA3),
    "mistral": Case("mistral-7b-v0.1", llama("Mistral", sliding_window=5), LLAMA, f"{LLAMA_SIZES} window=5"),
    "mixtral": Case("mixtral-8x7b", llama("Mixtral", theta=1e6), MIXTRAL, LLAMA_SIZES),
    "bloom": Case(
        "bloom-560m",
        config("Bloom", hidden_size=48, n_layer=2, n_head=6),  # not a power of two: slopes from two series
        BLOOM,
        f"{GPT_SIZES} n_heads=6 head_dim=8",
    ),
    "mpt": Case("mpt-7b", config("Mpt", d_model=48, n_heads=4, n_layers=2, max_seq_len=64), MPT, GPT_SIZES),
}

# What the other choices of the axes are made of: an axis swapped on a packaged model is a family of its own.
SWAPPED = {
    "post norm (gpt-1)": Case("gpt2", gpt("OpenAIGPT"), GPT1, f"{GPT_SIZES} block=post"),
    "parallel, interleaved partial rope, head bias (gpt-j)": Case(
        "gpt2",
        gpt("GPTJ", rotary_dim=6),
        GPTJ,
        f"{GPT_SIZES} block=parallel position=rope rotary_dim=6 {INTERLEAVED} attention.bias=false "
        "head={tied:false,bias:true}",
    ),
    "parallel with two norms, partial rope (gpt-neox)": Case(
        "gpt2",
        llama("GPTNeoX", **NARROW_HF, rope=HALF),
        NEOX,
        f"{GPT_SIZES} d_ff=56 block=parallel ++block.shared_norm=false position=rope rotary_dim=6 activation=gelu "
        "head.tied=false",
    ),
    "layernorm with an offset, squared relu (nemotron)": Case(
        "llama2-7b",
        llama("Nemotron", rope=HALF),
        LLAMA,
        f"{LLAMA_SIZES} norm=layernorm ++norm.unit_offset=true ffn=mlp activation=relu2 rotary_dim=8",
    ),
    "layernorm without weights (olmo)": Case(
        "llama2-7b", llama("Olmo", **NARROW_HF), LLAMA, f"{NARROW} norm=layernorm_plain"
    ),
    "norm inside the residual, qk-norm (olmo 2)": Case(
        "llama2-7b",
        # its qk-norm spans all heads, which is ours where there is one
        llama("Olmo2", num_attention_heads=1, num_key_value_heads=1, head_dim=48),
        OLMO2,
        f"{LLAMA_SIZES} block=post_inside n_heads=1 n_kv_heads=1 head_dim=48 {QK_NORM}",
    ),
    "qk-norm of each head (qwen 3)": Case("llama2-7b", llama("Qwen3"), LLAMA, f"{LLAMA_SIZES} {QK_NORM}"),
    "sandwich, softcaps, local and full layers, scaled embedding (gemma 2)": Case(
        "llama2-7b",
        llama(
            "Gemma2",
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=25,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        GEMMA2,
        f"{LLAMA_SIZES} block=sandwich norm=rmsnorm_offset activation=gelu_tanh ++attention.softcap=2.0 "
        "++attention.scale=0.2 ++embedding={scale:sqrt_d_model} ++head={tied:true,softcap:3.0} "
        "++layers={local:{attention:{window:5}},full:{}} ++pattern=[local,full]",
    ),
    "parallel, layernorm without bias, logit scale (cohere)": Case(
        "llama2-7b",
        llama("Cohere", **NARROW_HF, layer_norm_eps=1e-5, logit_scale=0.5),
        LLAMA,
        f"{NARROW} block=parallel norm=layernorm norm.bias=false {INTERLEAVED} ++head={{tied:true,scale:0.5}}",
    ),
    "layers without positions (smollm 3)": Case(
        "llama2-7b",
        llama("SmolLM3", **NARROW_HF, no_rope_layers=[1, 0], tie_word_embeddings=False),
        LLAMA,
        NARROW + " ++layers={turned:{},none:{position:{kind:none}}} ++pattern=[turned,none]",
    ),
    "a shared expert (granite moe)": Case(
        "mixtral-8x7b",
        llama("GraniteMoeShared", **NARROW_HF, shared_intermediate_size=40, attention_multiplier=12**-0.5),
        GRANITE_MOE,
        f"{NARROW} rope_theta=1e4 {SHARED}",
    ),
}
CASES = PACKAGED | SWAPPED


def both(case: Case, kernel: str = "eager") -> tuple[Any, Any]:
    """The reference and our model, with the same weights and none of them at a value that hides what was forgotten."""
    reference = transformers.AutoModelForCausalLM.from_config(case.config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.uniform_(0.5, 1.5)
    model = zoo.build(case.model, case.overrides.split(), device="cpu", kernel=kernel).eval()
    model.load_state_dict(moved(case.table, reference), strict=True)
    return reference, model


def padded(batch: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [B, T] of rows filled up on one side, with tokens that must not matter."""
    width = max(map(len, batch))
    ids = torch.randint(VOCAB, (len(batch), width))
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(batch):
        place = slice(width - len(tokens), None) if left else slice(0, len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
    return ids, mask


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_references(name: str, kernel: str) -> None:
    reference, model = both(CASES[name], kernel)
    ids = torch.randint(VOCAB, (2, max(LENGTHS)))
    with torch.no_grad():
        expected, found = reference(ids).logits, model(ids).logits
    assert expected.std() > 0.5  # a model that says nothing would agree with anything
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", CASES)
def test_a_row_padded_on_either_side_gives_what_the_reference_gives_for_it_alone(name: str, left: bool) -> None:
    reference, model = both(CASES[name], "auto")
    batch = [torch.randint(VOCAB, (length,)) for length in LENGTHS]
    ids, mask = padded(batch, left)
    with torch.no_grad():
        found = model(ids, mask).logits
        for row, tokens in enumerate(batch):
            expected = reference(tokens[None]).logits[0]
            torch.testing.assert_close(found[row, mask[row].bool()], expected, **CLOSE)


@pytest.mark.parametrize("length", [16, 17, 24])
def test_dynamic_scaling_past_the_trained_length_equals_the_references(length: int) -> None:
    reference, model = both(scaled("dynamic", trained=16, factor=3.0))
    ids = torch.randint(VOCAB, (2, length))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, **CLOSE)


def test_the_balance_loss_of_one_layer_is_the_references_for_each_choice() -> None:
    sizes = f"{LLAMA_SIZES} n_layers=1 router.balance_coef=0.5"
    reference, model = both(Case("mixtral-8x7b", llama("Mixtral", theta=1e6, num_hidden_layers=1), MIXTRAL, sizes))
    ids = torch.randint(VOCAB, (2, 24))
    with torch.no_grad():
        scores = reference(ids, output_router_logits=True).router_logits
        found = model.train()(ids).losses["balance"]
    # The reference sums over a token's choices; ours (Fedus et al., 2021) is 1 at balance for any top_k.
    expected = load_balancing_loss_func(scores, num_experts=8, top_k=2) / 2
    torch.testing.assert_close(found, 0.5 * expected)
