"""List the keys of a model's YAML: axes, structure, the fields of the model itself, and dimensions."""

from __future__ import annotations

from typing import Any

from zoo.model.activation import Activation
from zoo.model.attention.base import Attention
from zoo.model.block.base import Block
from zoo.model.decoder import Decoder
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.ffn import FFN
from zoo.model.norm import Norm
from zoo.model.position.base import Position
from zoo.model.router import Router
from zoo.spec import Spec

BASES: dict[str, type[Spec]] = {
    **{"attention": Attention, "position": Position, "norm": Norm, "block": Block},
    **{"ffn": FFN, "router": Router, "activation": Activation, "cross": Attention},
}
"""Each axis of a model, and the base class of its kinds."""

AXES = tuple(BASES)
"""Axes. A model states them at its top level, and nodes that contain such a component refer to them by
interpolation."""

STRUCTURE = {
    "about": "Title, source, note and published parameters of the model.",
    "kind": "Topology: decoder (the default), encoder or encoder_decoder.",
    "n_layers": "Number of layers.",
    "layers": "Kinds of layer by name: the keys of the model that differ in them.",
    "pattern": "Kind of each layer, first to last, repeated; `layer` is the model as it stands.",
}
"""Top-level keys that the grammar reads itself, with their descriptions; they are not fields of a Spec."""

TOWERS = ("encoder", "decoder")
"""Keys of an encoder-decoder: patches of the model's own keys, one for each of its two towers."""

OWN = {field.name for field in Decoder.fields()} - {"blocks"}
"""Fields of a model with one tower, without `blocks`, which the grammar makes of the kinds of layer."""

BOTH = {field.name for field in EncoderDecoder.fields()} - set(TOWERS)
"""Fields of an encoder-decoder that belong to no single tower."""

TOWER_DEFAULTS: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder", "head": {"kind": "none"}, "cross": None, "prefix_lm": None},
    "decoder": {"kind": "decoder", "embedding": {"tied": "encoder.embedding.tokens"}, "pooler": None},
}
"""How the towers of an encoder-decoder differ from the model's own keys by default, before their own patches: the
decoder reads the encoder's token table, and the encoder has no head. A null drops the key."""

_DIMS = """
n_heads n_kv_heads head_dim d_ff window bias norm_eps norm_bias rope_theta rope_factor rotary_dim original_max_seq_len
n_buckets max_distance max_relative_positions position_buckets n_experts top_k balance_coef z_coef normalize_top_k
router_bias router_scale router_jitter expert_capacity selection_bias shared_expert
scale_input swiglu_alpha swiglu_limit q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim d_state
index_n_heads index_head_dim index_top_k zero_experts null_experts d_router dense_d_ff index_block_size index_top_blocks
index_pool compress_rate o_groups o_lora_rank adapter_rank shared_heads shared_kv_heads shared_head_dim
d_conv expand dt_rank ssm_heads ssm_head_dim ssm_groups n_k_heads n_v_heads head_k_dim head_v_dim conv_width
conv_groups global_block_size block_size random_blocks relative_width relative_extent stream_rank eos_id ngram_hashes
ngram_table_size
"""
DIMS = frozenset(_DIMS.split())
"""Dimensions that a model may state even if its present choices do not read them, so that axes can be swapped."""

KNOWN = OWN | set(AXES) | set(STRUCTURE) | DIMS
"""Keys that any model, tower or layer patch may state."""
