"""Shrink every packaged model: its own structure, kinds of layer and choices, with small dimensions."""

from __future__ import annotations

import functools
from typing import Any

from support.packaged_specs import load
from zoo.grammar import from_dict, to_dict
from zoo.model.layer_loop import Loop
from zoo.probes.shrink import shorten

SIZES = {
    **{"vocab_size": 67, "d_model": 36, "d_ff": 24, "width": 16, "out_width": 16, "max_seq_len": 64},
    **{"n_heads": 4, "head_dim": 8, "rotary_dim": 4, "window": 5, "original_max_seq_len": 32},
    **{"q_lora_rank": 10, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5},
    **{"n_k_heads": 2, "n_v_heads": 4, "head_k_dim": 6, "head_v_dim": 10, "d_state": 4, "dt_rank": 3},
    **{"n_experts": 8, "n_buckets": 8, "max_distance": 16, "max_relative_positions": 24, "position_buckets": 8},
}
"""What a dimension becomes where a model states it; every one differs from what it is multiplied with."""

AT_MOST = {"top_k": 3, "zero_experts": 3}


@functools.cache
def shrunk(name: str) -> Any:
    """Load the Spec of a packaged model with small dimensions, one layer of each kind and two of the first."""
    return from_dict(_small(to_dict(load(name))))


def _small(node: Any) -> Any:
    if isinstance(node, list):
        return [_small(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _sized(key, value) for key, value in node.items()}
    if node.get("n_kv_heads"):  # MHA stays MHA, MQA stays MQA
        heads = node["n_heads"], node["n_kv_heads"]
        made["n_kv_heads"] = 1 if heads[1] == 1 else 4 if heads[0] == heads[1] else 2
    if "pattern" in node:
        kinds = list(dict.fromkeys(node["pattern"]))
        made["pattern"] = [*kinds, kinds[0]]
        if node.get("loop"):
            made["pattern"], loop = shorten(node["pattern"], Loop.parse(node["loop"]))
            made["loop"] = to_dict(loop)
        if (per_layer := (made.get("embedding") or {}).get("per_layer")) is not None:
            per_layer["n_layers"] = len(made["pattern"])
    return made


def _sized(key: str, value: Any) -> Any:
    if key == "groups" and isinstance(value, dict):  # of experts
        return {**value, "count": min(value["count"], 2), "open": 1}
    if isinstance(value, int) and not isinstance(value, bool):
        return SIZES[key] if key in SIZES else min(value, AT_MOST.get(key, value))
    return _small(value)
