"""Zoo's names for fields and choices of other libraries: transformers, x-transformers, LitGPT, nanoGPT, Megatron."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import yaml

from zoo.errors import did_you_mean
from zoo.untrusted.printable import quote

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

_FORMS = {
    "head: {tied: $}": "tie_word_embeddings tie_embeddings tie_embedding weight_tying",
    "head: {softcap: $}": "final_logit_softcapping final_logit_softcap logit_softcap logits_soft_cap",
    "embedding: {scale: $}": "embed_scale embedding_scale embedding_multiplier scale_emb",
    "embedding: {scale: sqrt_d_model}": "embed_scale=true scale_embedding=true scale_embeddings=true",
    "norm: rmsnorm": "use_rmsnorm=true use_rms_norm=true",
    "norm: {kind: rmsnorm, unit_offset: $}": "zero_centered zero_centered_gamma apply_layernorm_1p add_unit_offset",
    "block: parallel": "parallel_residual=true use_parallel_residual=true parallel_attn=true",
    "bias: not $": "no_bias",
    "d_ff: $ * $d_model": "expansion_ratio mlp_ratio",
    "ffn: {bias: $}": "mlp_bias",
    "ffn: gated": "ff_glu=true",
    "activation: silu": "ff_swish=true",
    "ffn: {kind: moe, shared: $}": "shared",
    "ffn: {kind: moe, shared: {kind: gated, d_ff: $ * $moe_intermediate_size or $ * $d_ff}}": "n_shared_experts "
    "n_shared num_shared_experts num_shared_expert shared_experts",
    "ffn: {kind: moe, shared: {expert: {kind: gated, d_ff: $}, gate: true}}": "shared_expert_intermediate_size",
    "ffn: {kind: moe, shared: {kind: gated, d_ff: $}}": "shared_intermediate_size moe_shared_expert_intermediate_size",
    "router: sigmoid_topk": "scoring_func=sigmoid",
    "router: softmax_topk": "scoring_func=softmax",
    "router: sqrtsoftplus_topk": "scoring_func=sqrtsoftplus",
    "router: {kind: sigmoid_topk, groups: {count: $n_group, open: $topk_group}}": "n_group topk_group topk_method",
    "layers: {dense: {ffn: gated}}\npattern: [dense*<$>, layer*<$n_layers - $>]": "first_k_dense_replace",
    "attention: mqa": "multi_query=true",
    "attention: {kind: gqa, bias: qkv}": "qkv_bias=true use_qkv_bias=true add_qkv_bias=true",
    "attention: {kind: gqa, bias: $}": "bias=qkv bias=o",
    "attention: {gate: $}": "attn_output_gate attention_gate",
    "attention: {qk_norm: $}": "use_qk_norm attn_qk_norm qk_layernorm qk_layer_norm",
    "attention: {softcap: $}": "attn_logit_softcapping attention_logit_softcapping attn_logit_softcap",
    "attention: {scale: $}": "attention_multiplier",
    "attention: {scale: rsqrt $}": "query_pre_attn_scalar",
    "attention: {kind: sliding, window: $}": "sliding_window sliding_window_size",
    "layers: {local: {attention: sliding}}\npattern: {every: $, is: layer, else: local}": "sliding_window_pattern",
    "layers: {local: {attention: sliding, position: {kind: rope, theta: $}}}\n"
    "pattern: {every: $sliding_window_pattern or 6, is: layer, else: local}": "rope_local_base_freq",
    "position: alibi": "alibi=true use_alibi=true alibi_pos_bias=true",
    "position: rope": "rotary_pos_emb=true",
    "position: {kind: rope, rotary_dim: $ * $head_dim}": "partial_rotary_factor rotary_pct rotary_percentage "
    "rotary_emb_fraction",
    "rotary_dim: $ * $head_dim": "rotary_dim=share",
    "position: {kind: rope, theta: $.rope_theta}": "rope_scaling=default rope_parameters=default",
    "position: {kind: rope, theta: $.rope_theta, scaling: {kind: linear, factor: $.factor}}": "rope_scaling=linear "
    "rope_parameters=linear",
    "position: {kind: rope, theta: $.rope_theta, scaling: {kind: dynamic, factor: $.factor, original_max_seq_len: "
    "$max_seq_len or 8192}}": "rope_scaling=dynamic rope_parameters=dynamic",
    "position: {kind: rope, theta: $.rope_theta, scaling: {kind: yarn, factor: $.factor, original_max_seq_len: "
    "$.original_max_position_embeddings or $max_seq_len or 8192, beta_fast: $.beta_fast, beta_slow: $.beta_slow, "
    "attention_factor: $.attention_factor, mscale: $.mscale, mscale_all_dim: $.mscale_all_dim, truncate: "
    "$.truncate}}": "rope_scaling=yarn rope_parameters=yarn",
    "position: {kind: rope, theta: $.rope_theta, scaling: {kind: llama3, factor: $.factor, low_freq_factor: "
    "$.low_freq_factor, high_freq_factor: $.high_freq_factor, original_max_seq_len: "
    "$.original_max_position_embeddings or 8192}}": "rope_scaling=llama3 rope_parameters=llama3",
    "position: rope_linear": "rope_type=linear",
    "position: rope_dynamic": "rope_type=dynamic",
    "position: rope_yarn": "rope_type=yarn",
    "position: rope_llama3": "rope_type=llama3",
}

FORMS = {name: form for form, names in _FORMS.items() for name in names.split()}
"""How Zoo writes keys of other libraries for which it has no key at a model's top level. A form is YAML text, listed by
the key's `name`, or by `name=value` for a value that is written differently. In a form `$` is the value, `$.factor` a
field of the value, `$head_dim` another key of the model. The form's first `kind` is left out if the model's own choice
has the fields (`zoo.grammar.hints`)."""

_BLANK = re.compile(r"<.*?>|(?:not |rsqrt )?\$[^,}\n]*")
"""Matches a placeholder of a form (FORMS). A form that is shown without a model has `…` for each placeholder."""

CHOICES = {
    **{"swish": "silu", "swiglu": "gated", "geglu": "gated", "reglu": "gated", "glu": "gated", "relu_squared": "relu2"},
    **{"rotary": "rope", "rms": "rmsnorm", "rms_norm": "rmsnorm", "layer_norm": "layernorm", "ln": "layernorm"},
    **{"multi_head": "mha", "multihead": "mha", "full": "mha", "self": "mha", "local": "sliding", "nope": "none"},
    **{"pre_norm": "pre", "prenorm": "pre", "post_norm": "post", "postnorm": "post", "parallel_residual": "parallel"},
    **{"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_python": "gelu"},
    **{"gelu_10": "gelu_clipped", "linear": "identity", "yarn": "rope_yarn", "mixtral": "moe"},
}
"""Zoo's choices, by their names in other libraries."""


def hint_choice(word: str, options: Iterable[str]) -> str:
    """Hint at Zoo's choice for another library's name, or else at the closest option: ` (did you mean 'x'?)`."""
    options, word = list(options), word.casefold()
    ours = CHOICES.get(word, "")
    return f" (did you mean '{ours}'?)" if ours in options else did_you_mean(word, options)


def open_options(word: str, options: Iterable[str]) -> str:
    """Begin a bracket that lists choices, with the hint of `hint_choice`: ` (did you mean 'x'? ` or ` (`."""
    hint = hint_choice(word, options)
    return f"{hint.removesuffix(')')} " if hint else " ("


FOREIGN = {theirs: ours for ours, names in _KEYS.items() for theirs in names.split()}
"""Zoo's keys, by their names in other libraries."""


INNER = {"tied", "qk_norm", "softcap", "shared", "gate"}
"""Zoo's keys that exist only as fields of a component."""


def translate_name(name: str, value: object = None, known: Collection[str] | None = None) -> str:
    """Say how Zoo writes another library's key, with the stated value: `d_model is Zoo's name for it: d_model: 4096`;
    empty if unknown. `known` are the fields of the component; None for a key at a model's top level."""
    if known is None and (form := next((FORMS[each] for each in FORMS if each.partition("=")[0] == name), "")):
        return f"Zoo writes {_BLANK.sub('…', form).replace(chr(10), '; ')}"
    ours = FOREIGN.get(name)
    if ours is None or (known is not None and ours in INNER and ours not in known):
        return ""
    stated = "" if value is None else f": {ours}: {write_value(value)}"
    whose = "" if known is None or ours in known else ", at the model's top level"
    return f"{ours} is Zoo's name for it{whose}{stated}"


def find_form(name: str, value: Any) -> str:
    """Find Zoo's YAML for another library's key and value, as a text with placeholders; "" if there is none."""
    if isinstance(value, Mapping):
        tag = value.get("rope_type") or value.get("type") or "default"
    else:
        tag = "share" if isinstance(value, float) and 0 < value < 1 else write_value(value)
    return FORMS.get(f"{name}={tag}", FORMS.get(name, ""))


def fill_form(form: str, value: Any, look: Callable[[str], Any]) -> dict[str, Any]:
    """Fill the placeholders of `form` (from `find_form`) with the stated value and with other keys of the model, which
    `look` finds (None for a missing key). Fields whose placeholder has no value are left out."""
    return _fill(yaml.safe_load(form), value, look)


def _fill(node: Any, value: Any, look: Callable[[str], Any]) -> Any:
    if isinstance(node, dict):
        filled = {key: _fill(each, value, look) for key, each in node.items()}
        return {key: each for key, each in filled.items() if each is not None}
    if isinstance(node, list):
        return [_fill(each, value, look) for each in node]
    if not isinstance(node, str) or "$" not in node:
        return node
    if "<" in node:  # `layer*<$n_layers - $>`
        return re.sub("<(.*?)>", lambda found: str(_compute(found[1], value, look)), node)
    return _compute(node, value, look)


def _compute(text: str, value: Any, look: Callable[[str], Any]) -> Any:
    """Compute a placeholder's first alternative (of `$ * $head_dim or 8192`) whose numbers are all known. If there is
    none, a product or a difference is written in words, such as `4 * head_dim`."""

    def read(term: str) -> Any:
        if term.startswith("$."):
            return value.get(term[2:]) if isinstance(value, Mapping) else None
        return look(term[1:]) if term[1:] else value

    if text.startswith("not "):
        return not value
    if text.startswith("rsqrt "):
        return value**-0.5 if _is_number(value) and value > 0 else value
    sign = second = ""
    for each in text.split(" or "):
        first, sign, second = (*each.split(" "), "", "")[:3]
        found = read(first) if "$" in first else int(first)
        other = read(second) if sign else 1
        if sign and _is_number(found) and _is_number(other):
            found = found * other if sign == "*" else found - other
            return int(found) if found == int(found) else found
        if not sign and found is not None:
            return found
    return f"{quote(value)} {sign} {second[1:]}" if sign else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15  # no NaN either


def write_value(value: object) -> str:
    """Write a value as in YAML, or `…` for one that is not a number, a boolean or a word."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return quote(value)
    return value if isinstance(value, str) and value.isidentifier() else "…"
