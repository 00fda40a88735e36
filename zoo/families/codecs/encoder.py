"""Read and write fields that only configs of encoders have: DeBERTa's position types, ALBERT's groups of layers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import UNSAID, TwoWay, bind, try_evaluate
from zoo.families.expression import FUNCTIONS, Bindings, Codec, PlainFunction
from zoo.untrusted.printable import quote

TYPES = ("c2p", "p2c")


def _parse_types(stated: Any) -> list[str]:
    """Parse DeBERTa's position types, a list or one string with bars. Raises ConfigError for unknown ones."""
    names = [name.strip() for name in stated.lower().split("|")] if isinstance(stated, str) else list(stated or [])
    unknown = [name for name in names if name not in TYPES]
    if unknown:
        raise ConfigError(f"pos_att_type: {quote(unknown[0])} is not supported (one of: {', '.join(TYPES)})")
    return [name for name in TYPES if name in names]


def read_types(is_relative: bool, stated: Any) -> list[str]:
    """`pos_types(relative_attention, pos_att_type)`: the kinds of relative-position scores (c2p, p2c) of DeBERTa's
    attention; none unless the attention is relative."""
    return _parse_types(stated) if is_relative else []


def write_types(types: list[str] | None) -> tuple[Any, ...]:
    """Invert `pos_types`."""
    return bool(types), list(types) if types else UNSAID


class PosScale(Codec):
    """`pos_scale(relative_attention, pos_att_type, head_dim)`: the scale of DeBERTa's attention if it is not relative,
    1 / √(head_dim · (1 + number of position types)). The stated types count, although such attention uses none. None,
    attention's default scale, if the attention is relative or no types are stated."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        is_relative, stated, head_dim = args
        count = len(_parse_types(stated))
        return None if is_relative or not count else (head_dim * (1 + count)) ** -0.5

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if value is None:
            return {}
        for head_dim in try_evaluate(args[2], env):
            count = round(value**-2 / head_dim) - 1
            return {**bind(args[0], False, env), **bind(args[1], list(TYPES[:count]), env)}
        return {}


def read_positions(
    types: list[str], farthest: int, length: int, biased: bool, buckets: int = -1, norm: str = "none", eps: Any = None
) -> dict[str, Any]:
    """`relative(types, max_relative_positions, max_position_embeddings, position_biased_input)`: DeBERTa's positions.

    Positions are relative if there are position types. Learned embeddings are added if `position_biased_input` is true.
    Version 2 has three more arguments: `position_buckets`, `norm_rel_ebd` and `layer_norm_eps`.
    """
    learned = {"kind": "learned", "max_seq_len": length} if biased else None
    if not types:
        return learned or {"kind": "none"}
    normed = "layer_norm" in [name.strip() for name in norm.lower().split("|")]
    return {
        "kind": "relative",
        "max_relative_positions": length if farthest < 1 else farthest,
        "position_buckets": buckets if buckets > 0 else None,
        "norm": {"kind": "layernorm", "eps": eps} if normed else None,
        "absolute": learned,
    }


def write_positions(position: Any) -> tuple[Any, ...] | None:
    """Invert `relative`."""
    kind = position.get("kind") if isinstance(position, Mapping) else None
    if kind in ("learned", "none"):
        return UNSAID, UNSAID, UNSAID, kind == "learned"
    if kind != "relative":
        return None
    buckets, norm = position["position_buckets"] or -1, "layer_norm" if position["norm"] else "none"
    return UNSAID, position["max_relative_positions"], UNSAID, position["absolute"] is not None, buckets, norm


def count_inner(weights: list[int], stated: int) -> int:
    """Find ALBERT's number of layers per group from the index of each layer's weights. `stated` is tried first; the
    result is 1 if no number fits."""
    return next((count for count in (stated, *range(1, len(weights) + 1)) if _groups(weights, count) is not None), 1)


def count_groups(weights: list[int], inner: int) -> int:
    """Count ALBERT's groups of `inner` layers from the index of each layer's weights."""
    return _groups(weights, inner) or 1


def _groups(weights: list[int], inner: int) -> int | None:
    stored, passes = max(weights) + 1, len(weights) // inner
    if stored % inner or len(weights) % inner:
        return None
    groups = stored // inner
    laid = [int(index // inner / (passes / groups)) * inner + index % inner for index in range(len(weights))]
    return groups if laid == weights else None


FUNCTIONS |= {
    "pos_types": TwoWay(read_types, write_types),
    "pos_scale": PosScale(),
    "relative": TwoWay(read_positions, write_positions),
    "inner_of": PlainFunction(count_inner),
    "groups_of": PlainFunction(count_groups),
}
