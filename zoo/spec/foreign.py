"""Zoo's names for fields and choices of other libraries: transformers, x-transformers, LitGPT, nanoGPT, Megatron."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from zoo.errors import did_you_mean
from zoo.untrusted.text import quote

_KEYS = {
    "d_model": "hidden_size n_embd embed_dim model_dim dim_model d_embed embedding_size dim",
    "n_layers": "num_hidden_layers n_layer num_layers depth",
    "n_heads": "num_attention_heads n_head num_heads heads",
    "n_kv_heads": "num_key_value_heads num_kv_heads n_query_groups kv_heads attn_kv_heads",
    "head_dim": "head_size dim_head attn_dim_head kv_channels",
    "d_ff": "intermediate_size ffn_dim ffn_hidden_size n_inner moe_intermediate_size hidden_dim",
    "vocab_size": "num_tokens padded_vocab_size n_vocab",
    "max_seq_len": "max_position_embeddings n_positions n_ctx max_length seq_len",
    "norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon",
    "rope_theta": "rope_base rotary_emb_base rotary_base",
    "n_experts": "num_experts num_local_experts n_routed_experts n_expert",
    "top_k": "num_experts_per_tok n_expert_per_token moe_top_k",
    "bias": "attention_bias use_bias add_bias_linear",
    "activation": "hidden_act hidden_activation activation_function",
    "norm": "norm_class_name normalization",
    "ffn": "mlp_class_name",
    "window": "sliding_window sliding_window_size",
    "router_scale": "routed_scaling_factor moe_router_topk_scaling_factor",
    "normalize_top_k": "norm_topk_prob",
    "tied": "tie_word_embeddings tie_embeddings",
    "qk_norm": "use_qk_norm attn_qk_norm",
    "softcap": "attn_logit_softcapping attention_logit_softcapping",
    "shared": "shared_expert n_shared shared_experts",
    "gate": "attn_output_gate attention_gate",
}

FORMS = {
    "rope_scaling": "position: rope_yarn  # or rope_linear, rope_dynamic, rope_llama3",
    "rope_type": "position: rope_yarn  # or rope_linear, rope_dynamic, rope_llama3",
    "partial_rotary_factor": "position: {kind: rope, rotary_dim: 16}  # channels of a head that are rotated",
    "qkv_bias": "attention: {bias: qkv}",
    "use_qkv_bias": "attention: {bias: qkv}",
    "attn_output_gate": "attention: {gate: true}",
    "attention_gate": "attention: {gate: true}",
    "shared_experts": "ffn: {kind: moe, shared: gated}",
    "n_shared": "ffn: {kind: moe, shared: gated}",
    "tie_word_embeddings": "head: {kind: lm, tied: true}",
    "tie_embeddings": "head: {kind: lm, tied: true}",
    "sliding_window": "attention: {kind: sliding, window: VALUE}",
    "sliding_window_size": "attention: {kind: sliding, window: VALUE}",
    "attn_logit_softcapping": "attention: {softcap: VALUE}",
    "attention_logit_softcapping": "attention: {softcap: VALUE}",
    "final_logit_softcapping": "head: {softcap: VALUE}",
    "rotary_pos_emb": "position: rope",
    "alibi_pos_bias": "position: alibi",
    "attn_qk_norm": "attention: {qk_norm: true}",
    "use_qk_norm": "attention: {qk_norm: true}",
    "use_rmsnorm": "norm: rmsnorm",
    "ff_glu": "ffn: gated",
    "ff_swish": "activation: silu",
    "parallel_residual": "block: parallel",
    "n_shared_experts": "ffn: {kind: moe, shared: gated}",
    "n_group": "router: {kind: sigmoid_topk, groups: {count: 4, open: 2}}",
    "topk_group": "router: {kind: sigmoid_topk, groups: {count: 4, open: 2}}",
    "topk_method": "router: {kind: sigmoid_topk, groups: {count: 4, open: 2}}",
    "scoring_func": "router: sigmoid_topk  # or softmax_topk, sqrtsoftplus_topk",
}
"""How Zoo writes, at a model's top level, keys that have no counterpart there. VALUE is the stated value."""

CHOICES = {
    **{"swish": "silu", "swiglu": "gated", "geglu": "gated", "reglu": "gated", "glu": "gated", "relu_squared": "relu2"},
    **{"rotary": "rope", "rms": "rmsnorm", "rms_norm": "rmsnorm", "layer_norm": "layernorm", "ln": "layernorm"},
    **{"multi_head": "mha", "multihead": "mha", "full": "mha", "self": "mha", "local": "sliding", "nope": "none"},
    **{"pre_norm": "pre", "prenorm": "pre", "post_norm": "post", "postnorm": "post", "parallel_residual": "parallel"},
    **{"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "yarn": "rope_yarn", "mixtral": "moe"},
}
"""Zoo's choice by its name in other libraries."""


def hint_choice(word: str, options: Iterable[str]) -> str:
    """Hint at another library's name of a choice, or at the closest one: ` (did you mean 'x'?)`."""
    options, word = list(options), word.casefold()
    ours = CHOICES.get(word, "")
    return f" (did you mean '{ours}'?)" if ours in options else did_you_mean(word, options)


FOREIGN = {theirs: ours for ours, names in _KEYS.items() for theirs in names.split()}
"""Zoo's key by its name in other libraries."""


INNER = {"tied", "qk_norm", "softcap", "shared", "gate"}
"""Zoo's keys that exist only as fields of a component."""


def translate_name(name: str, value: object = None, known: Collection[str] | None = None) -> str:
    """Say how Zoo writes another library's key, with the stated value: `d_model is Zoo's name for it: d_model: 4096`;
    empty if unknown. `known` are the fields of the component; None for a key at a model's top level."""
    if known is None and name in FORMS:
        return f"Zoo writes {FORMS[name].replace('VALUE', write_value(value))}"
    ours = FOREIGN.get(name)
    if ours is None or (known is not None and ours in INNER and ours not in known):
        return ""
    stated = "" if value is None else f": {ours}: {write_value(value)}"
    whose = "" if known is None or ours in known else ", at the model's top level"
    return f"{ours} is Zoo's name for it{whose}{stated}"


def write_value(value: object) -> str:
    """Write a value as in YAML, or `…` for one that is not a number, a boolean or a word."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return quote(value)
    return value if isinstance(value, str) and value.isidentifier() else "…"
