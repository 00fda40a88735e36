"""Rotary positions as config.json files say them: in the new style (`rope_parameters`), in the hub's (`rope_theta`,
`rope_scaling`), and in words of some families' own."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.expression import FUNCTIONS, Bindings, Codec, bind, known
from zoo.model.position import Scaling


def rope_parameters(config: Mapping[str, Any], layer_type: str | None = None) -> dict[str, Any]:
    """The rotary parameters of a config in the new style, whatever its own: `rope_parameters`, or `rope_theta` with
    `rope_scaling`."""
    stated = config.get("rope_parameters")
    if isinstance(stated, Mapping) and (layer_type or not config.get("rope_scaling")):
        inner = stated.get(layer_type) if layer_type else None
        found = dict(inner if isinstance(inner, Mapping) else stated)
    else:
        found = dict(config.get("rope_scaling") or {})
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    for name in ("rope_theta", "partial_rotary_factor"):
        if config.get(name) is not None:
            found.setdefault(name, config[name])
    if config.get("default_partial") is not None:
        found.setdefault("partial_rotary_factor", config["default_partial"])
    return found


class Rope(Codec):
    """`rope(head_dim)`, `rope(head_dim, "full_attention")`: rotary positions for heads of this width, of this kind of
    layer where the config tells them apart. With a theta as third, `rope(head_dim, "sliding_attention", 1e4)`, the kind
    has nothing of what stands at the config's top level: that theta, unscaled."""

    interleaved = False

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        head_dim, layer_type = args[0], args[1] if len(args) > 1 else None
        found = rope_parameters(env, layer_type)
        if len(args) > 2:
            stated = env.get("rope_parameters") or {}
            found = {"rope_theta": args[2], **(stated.get(layer_type) or {})}
        if layer_type:  # the reference looks for this one beside the kinds of layer, not in them
            found = {**found, "truncate": (env.get("rope_parameters") or {}).get("truncate")}
        found = self.read(found, int(head_dim))
        partial = found.get("partial_rotary_factor") or 1.0
        width = int(head_dim * partial)
        if "rope_theta" not in found and "default_theta" not in env:
            raise ConfigError("rope_theta: is missing (rope_parameters or rope_theta states it)")
        return {
            "kind": "rope",
            "theta": float(found.get("rope_theta", env.get("default_theta"))),
            "rotary_dim": None if width + width % 2 == head_dim else width + width % 2,
            "spacing": width if width % 2 and width > 1 else None,  # an odd width is rounded up
            "interleaved": self.interleaved,
            "scaling": _complete(_scaling(found, env)),
        }

    def read(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        """Rotary parameters as transformers has them, of a family that says them otherwise."""
        return found

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if (
            not isinstance(value, Mapping)
            or value.get("kind") != "rope"
            or value["interleaved"] is not self.interleaved
        ):
            return {}
        scaling = value.get("scaling")
        fields: dict[str, Any] = {"rope_type": "default"} if scaling is None else _written(scaling)
        fields["rope_theta"] = value["theta"]
        for head_dim in known(args[0], env):
            part = value.get("spacing") or value.get("rotary_dim")
            if part or env.get("partial_rotary_factor") or env.get("default_partial"):
                fields["partial_rotary_factor"] = _share(part or head_dim, head_dim)
        layer_type = [layer for arg in args[1:] for layer in known(arg, env)]
        found: Bindings = {f"rope_parameters.{layer_type[0]}" if layer_type else "rope_parameters": fields}
        if scaling is not None and scaling["kind"] == "longrope":
            fields["factor"] = scaling["max_seq_len"] / scaling["original_max_seq_len"]
        if "original_max_position_embeddings" in fields and env.get("original_max_position_embeddings"):
            found["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
        return found


def _share(width: int, head_dim: int) -> float:
    """The share of a head that is so many channels, once rounded down."""
    share = width / head_dim
    return share if int(head_dim * share) == width else math.nextafter(share, 1.0)


class RopeInterleaved(Rope):
    """`rope_interleaved(head_dim)`: the same with neighbouring channels as the pairs."""

    interleaved = True


class RopeMscale(Rope):
    """`rope_mscale(head_dim)`: the same where longrope states its magnitudes as `short_mscale` and `long_mscale`
    (Phi-3.5-MoE)."""

    def read(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        if found.get("rope_type") not in ("longrope", "su"):
            return found
        missing = [name for name in ("short_mscale", "long_mscale") if not isinstance(found.get(name), int | float)]
        if missing:
            raise ConfigError(f"rope_parameters.{missing[0]}: is {found.get(missing[0])!r}, must be a number")
        short, long = found["short_mscale"], found["long_mscale"]
        return {**found, "attention_factor": short, "long_attention_factor": None if long == short else long}

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        found = super().bind(value, env, *args)
        fields = found.get("rope_parameters", {})
        if fields.get("rope_type") == "longrope":
            short = fields.pop("attention_factor", 1.0)
            fields |= {"short_mscale": short, "long_mscale": fields.pop("long_attention_factor", short)}
        return found


class RopeAlpha(Rope):
    """`rope_alpha(head_dim)`: the same where an `alpha` is a larger base (Hunyuan), though a file calls it dynamic."""

    def read(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        alpha = found.get("alpha")
        if not alpha or found.get("rope_type") != "dynamic":
            return found
        theta = found["rope_theta"] * alpha ** (head_dim / (head_dim - 2))
        return {**found, "rope_type": "default", "rope_theta": theta}


class YarnScale(Codec):
    """`yarn_scale(qk_head_dim)`: what multiplies the scores of heads of this width where rotary positions are scaled
    and state an `mscale_all_dim` a (DeepSeek): (0.1·a·ln(factor) + 1)² / √width. None where attention's own does."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        found = rope_parameters(env)
        share = found.get("mscale_all_dim") if (found.get("rope_type") or "default") != "default" else None
        if not share:
            return None
        magnitude = 0.1 * share * math.log(found["factor"]) + 1.0 if found["factor"] > 1 else 1.0
        return args[0] ** -0.5 * magnitude * magnitude

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        factor = rope_parameters(env).get("factor")
        if value is None or not factor or factor <= 1:
            return {}
        for width in known(args[0], env):
            share = (math.sqrt(value * math.sqrt(width)) - 1.0) / (0.1 * math.log(factor))
            return {"rope_parameters.mscale_all_dim": round(share, 9)}  # as short as a file states it
        return {}


class Even(Codec):
    """`even(rope(head_dim), head_dim)`: of a family whose classes cannot turn an odd number of channels."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        position, head_dim = args
        width = int(head_dim * (rope_parameters(env).get("partial_rotary_factor") or 1.0))
        if width % 2:
            found = f"turns {width} of a head's {head_dim} channels"
            raise ConfigError(f"partial_rotary_factor: {found} (an even number would do)")
        return position

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return bind(args[0], value, env)


class Whole(Codec):
    """`whole(rope(head_dim))`: of a family that turns whole heads. Part of one is refused: its classes read none."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        (position,) = args
        if position["rotary_dim"] is not None:
            raise ConfigError("partial_rotary_factor: is not 1, and these models turn whole heads (1.0 would do)")
        return position

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return bind(args[0], value, env)


YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
LLAMA3 = ("low_freq_factor", "high_freq_factor")


LLAMA3 = ("low_freq_factor", "high_freq_factor")


LONG = ("short_factor", "long_factor", "attention_factor", "long_attention_factor")


def _scaling(found: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling node of rotary parameters."""
    kind = found.get("rope_type") or "default"
    if kind == "default":
        return None
    known_kinds = ("linear", "dynamic", "yarn", "llama3", "longrope")
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in known_kinds:
        raise ConfigError(f"rope_type: {kind!r} is none of ours (one of: {', '.join(known_kinds)})")
    longest: Any = env.get("max_position_embeddings")
    trained: Any = (
        env.get("original_max_position_embeddings") or found.get("original_max_position_embeddings") or longest
    )
    if kind in ("linear", "dynamic", "llama3") and not isinstance(found.get("factor"), int | float):
        raise ConfigError(f"rope_parameters.factor: is {found.get('factor')!r}, {kind} scaling needs a number")
    if kind == "linear":
        return {"kind": kind, "factor": float(found["factor"])}
    if kind == "dynamic":  # the reference takes the length that the config states, whatever the parameters say
        return {"kind": kind, "factor": float(found["factor"]), "original_max_seq_len": longest}
    if kind == "longrope":
        chosen = {name: found[name] for name in LONG if found.get(name) is not None}
        return {"kind": kind, "original_max_seq_len": trained, **_longest(found, longest, trained), **chosen}
    names = YARN if kind == "yarn" else LLAMA3
    chosen = {name: found[name] for name in names if found.get(name) is not None}
    if "attention_factor" in chosen or not (chosen.get("mscale") and chosen.get("mscale_all_dim")):
        chosen = {name: value for name, value in chosen.items() if not name.startswith("mscale")}  # read as a pair
    factor = longest / trained if found.get("factor") is None and kind == "yarn" else found["factor"]
    return {"kind": kind, "factor": float(factor), "original_max_seq_len": trained, **chosen}


def _complete(scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    """A scaling node with every field stated: laid over that of other layers, it takes nothing from it."""
    if scaling is None:
        return None
    own = Scaling.kinds[scaling["kind"]].fields()
    return {**{each.name: each.default for each in own if each.default is not dataclasses.MISSING}, **scaling}


def _longest(found: Mapping[str, Any], longest: int, trained: int) -> dict[str, Any]:
    """The length that longrope reaches: the config's, or by its factor; one between two lengths is a magnitude."""
    factor = found.get("factor")
    if factor is None:
        return {"max_seq_len": longest}
    reached = factor * trained
    if reached == round(reached):
        return {"max_seq_len": round(reached)}
    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return {"max_seq_len": longest, "attention_factor": magnitude}


def _written(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters in the new style that say this scaling."""
    fields: dict[str, Any] = {"rope_type": scaling["kind"]}
    for name in ("factor", *YARN, *LLAMA3, *LONG):
        value = scaling.get(name)
        if value is not None:
            fields[name] = list(value) if isinstance(value, tuple | list) else value
    if scaling["kind"] in ("yarn", "llama3", "longrope"):
        fields["original_max_position_embeddings"] = scaling["original_max_seq_len"]
    return fields


FUNCTIONS |= {
    "rope": Rope(),
    "rope_interleaved": RopeInterleaved(),
    "rope_mscale": RopeMscale(),
    "rope_alpha": RopeAlpha(),
    "yarn_scale": YarnScale(),
    "even": Even(),
    "whole": Whole(),
}
