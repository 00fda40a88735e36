"""What config.json files of encoders say in words of their own: DeBERTa's position types, ALBERT's groups of layers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.expression import FUNCTIONS, Bindings, Codec, Plain, bind, known

TYPES = ("c2p", "p2c")


def _pos_types(stated: Any) -> list[str]:
    """DeBERTa's position types, of a list or of one string with bars. Raises ConfigError for those that are none."""
    names = [name.strip() for name in stated.lower().split("|")] if isinstance(stated, str) else list(stated or [])
    unknown = [name for name in names if name not in TYPES]
    if unknown:
        raise ConfigError(f"pos_att_type: {unknown[0]!r} is none of ours (one of: {', '.join(TYPES)})")
    return [name for name in TYPES if name in names]


class PosTypes(Codec):
    """`pos_types(relative_attention, pos_att_type)`: which position types attention compares, none unless it is
    relative."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        relative, stated = args
        return _pos_types(stated) if relative else []

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        found = bind(args[0], bool(value), env)
        return {**found, **bind(args[1], list(value), env)} if value else found


class PosScale(Codec):
    """`pos_scale(relative_attention, pos_att_type, head_dim)`: the scale of plain attention in a DeBERTa, which counts
    position types even where none is compared; None where it is attention's own."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        relative, stated, head_dim = args
        count = len(_pos_types(stated))
        return None if relative or not count else (head_dim * (1 + count)) ** -0.5

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if value is None:
            return {}
        for head_dim in known(args[2], env):
            count = round(value**-2 / head_dim) - 1
            return {**bind(args[0], False, env), **bind(args[1], list(TYPES[:count]), env)}
        return {}


class RelativePositions(Codec):
    """`relative(types, max_relative_positions, max_position_embeddings, position_biased_input)`: a DeBERTa's positions:
    relative where types are compared, learned besides where the input is biased. v2 adds `position_buckets`,
    `norm_rel_ebd` and `layer_norm_eps`."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        types, farthest, length, biased, *more = args
        learned = {"kind": "learned", "max_seq_len": length} if biased else None
        if not types:
            return learned or {"kind": "none"}
        buckets, norm, eps = more or (-1, "none", None)
        normed = "layer_norm" in [name.strip() for name in norm.lower().split("|")]
        return {
            "kind": "relative",
            "max_relative_positions": length if farthest < 1 else farthest,
            "position_buckets": buckets if buckets > 0 else None,
            "norm": {"kind": "layernorm", "eps": eps} if normed else None,
            "absolute": learned,
        }

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if not isinstance(value, Mapping) or value.get("kind") not in ("relative", "learned", "none"):
            return {}
        _, farthest, _, biased, *more = args
        if value["kind"] != "relative":
            return bind(biased, value["kind"] == "learned", env)
        found = {
            **bind(farthest, value["max_relative_positions"], env),
            **bind(biased, value["absolute"] is not None, env),
        }
        if more:
            found |= bind(more[0], value["position_buckets"] or -1, env)
            found |= bind(more[1], "layer_norm" if value["norm"] else "none", env)
        return found


def inner_of(weights: list[int], stated: int) -> int:
    """How many layers a group of ALBERT's has, by which weights each layer has: what is stated, if that fits."""
    return next((count for count in (stated, *range(1, len(weights) + 1)) if _groups(weights, count) is not None), 1)


def groups_of(weights: list[int], inner: int) -> int:
    """How many groups of `inner` layers ALBERT has, by which weights each layer has."""
    return _groups(weights, inner) or 1


def _groups(weights: list[int], inner: int) -> int | None:
    stored, passes = max(weights) + 1, len(weights) // inner
    if stored % inner or len(weights) % inner:
        return None
    groups = stored // inner
    laid = [int(index // inner / (passes / groups)) * inner + index % inner for index in range(len(weights))]
    return groups if laid == weights else None


FUNCTIONS |= {"pos_types": PosTypes(), "pos_scale": PosScale(), "relative": RelativePositions()}
FUNCTIONS |= {"inner_of": Plain(inner_of), "groups_of": Plain(groups_of)}
