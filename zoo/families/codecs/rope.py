"""Read and write rotary position embedding in config.json: transformers 5's `rope_parameters`, the older `rope_theta`
with `rope_scaling`, and fields of single families."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.binding import TwoWay, bind, try_evaluate
from zoo.families.expression import FUNCTIONS, Bindings, Codec, evaluate
from zoo.model.position.rotary import Scaling
from zoo.untrusted.printable import quote

OTHER_NAMES = {"su": "longrope", "mrope": "default", "xdrope": "dynamic", "deepseek_yarn": "yarn"}
"""transformers' name of a `rope_type`, by other names in files. M-RoPE (Qwen2-VL) and xdrope (HunyuanOCR) have
positions on several axes, which are equal for text."""

AXES = ("mrope_section", "mrope_interleaved", "xdrope_section")
"""Parameters that assign channels to the axes of an image. They change nothing for text, and are kept in the config."""


def read_rope_parameters(config: Mapping[str, Any], layer_type: str | None = None) -> dict[str, Any]:
    """Read a config's rotary parameters, of either style, in the style of `rope_parameters`. Raises ConfigError if
    parameters of the layer type and `rope_scaling` are both stated."""
    stated = config.get("rope_parameters")
    if isinstance(stated, Mapping) and (layer_type or not config.get("rope_scaling")):
        inner = stated.get(layer_type) if layer_type else None
        if isinstance(inner, Mapping) and config.get("rope_scaling"):
            raise ConfigError(f"rope_scaling: stands beside rope_parameters.{layer_type} (one of them)")
        found = dict(inner if isinstance(inner, Mapping) else stated)
    else:
        found = dict(config.get("rope_scaling") or {})
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    kind = found.get("rope_type") or "default"
    found["rope_type"] = OTHER_NAMES.get(kind, kind)
    for name in ("rope_theta", "partial_rotary_factor"):
        if config.get(name) is not None:
            found.setdefault(name, config[name])
    if config.get("default_partial") is not None:
        found.setdefault("partial_rotary_factor", config["default_partial"])
    return found


class Rope(Codec):
    """`rope(head_dim)`: rotary positions for heads of this width.

    `rope(head_dim, "full_attention")` takes the parameters of one kind of layer, if the config has them.
    `rope(head_dim, "sliding_attention", 1e4)` ignores the parameters at the config's top level: unless the kind of
    layer has parameters of its own, its positions are unscaled with this theta.
    `rope_interleaved(head_dim)` rotates pairs of neighbouring channels, `rope_reverse(head_dim)` by the negative angle
    (nanochat).
    """

    def __init__(self, *, interleaved: bool = False, reverse: bool = False) -> None:
        self.interleaved, self.reverse = interleaved, reverse

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        head_dim, layer_type = args[0], args[1] if len(args) > 1 else None
        found = read_rope_parameters(env, layer_type)
        if len(args) > 2:
            stated = env.get("rope_parameters") or {}
            found = {"rope_theta": args[2], **(stated.get(layer_type) or {})}
            if found.get("rope_type", "default") == "default":  # transformers' scaled types have a default of their own
                found = {"partial_rotary_factor": env.get("default_partial"), **found}
        if layer_type:  # transformers reads this field next to the kinds of layer, not inside them
            found = {**found, "truncate": (env.get("rope_parameters") or {}).get("truncate")}
        found = self.convert_parameters(found, int(head_dim))
        proportional = found.get("rope_type") == "proportional"  # its partial factor is a share of whole heads' pairs
        partial = 1.0 if proportional else found.get("partial_rotary_factor") or 1.0
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
            "reverse": self.reverse,
        }

    def convert_parameters(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        """Convert a family's RoPE parameters (short_mscale, …) to transformers' usual ones (attention_factor, …)."""
        return found

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if (
            not isinstance(value, Mapping)
            or value.get("kind") != "rope"
            or value["interleaved"] is not self.interleaved
            or value["reverse"] is not self.reverse
        ):
            return {}
        scaling = value.get("scaling")
        fields: dict[str, Any] = {"rope_type": "default"} if scaling is None else _written(scaling)
        fields["rope_theta"] = value["theta"]
        layer_type = [layer for arg in args[1:] for layer in try_evaluate(arg, env)]
        stated = read_rope_parameters(env, *layer_type[:1])
        fields |= {name: stated[name] for name in AXES if name in stated}
        for head_dim in try_evaluate(args[0], env):
            part = value.get("spacing") or value.get("rotary_dim")
            if scaling is not None and scaling["kind"] == "proportional":
                fields["partial_rotary_factor"] = scaling["share"]
            elif head_dim and (part or env.get("partial_rotary_factor") or env.get("default_partial")):
                fields["partial_rotary_factor"] = _share(part or head_dim, head_dim)
        found: Bindings = {f"rope_parameters.{layer_type[0]}" if layer_type else "rope_parameters": fields}
        if scaling is not None and scaling["kind"] == "longrope":
            fields["factor"] = scaling["max_seq_len"] / scaling["original_max_seq_len"]
        if "original_max_position_embeddings" in fields and env.get("original_max_position_embeddings"):
            found["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
        return found


def _share(width: int, head_dim: int) -> float:
    """Find the partial_rotary_factor that gives `width` rotated channels of a head after rounding down."""
    share = width / head_dim
    return share if int(head_dim * share) == width else math.nextafter(share, 1.0)


class RopeMscale(Rope):
    """`rope_mscale(head_dim)`: longrope with factors called `short_mscale` and `long_mscale` (Phi-3.5-MoE)."""

    def convert_parameters(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        if found.get("rope_type") != "longrope":
            return found
        missing = [name for name in ("short_mscale", "long_mscale") if not isinstance(found.get(name), int | float)]
        if missing:
            raise ConfigError(f"rope_parameters.{missing[0]}: is {quote(found.get(missing[0]))}, must be a number")
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
    """`rope_alpha(head_dim)`: rotary positions for configs that state `alpha` and say "dynamic", but mean unscaled
    positions with theta multiplied by alpha^(head_dim / (head_dim − 2)) (Hunyuan)."""

    def convert_parameters(self, found: Mapping[str, Any], head_dim: int) -> Mapping[str, Any]:
        alpha = found.get("alpha")
        if not alpha or found.get("rope_type") != "dynamic":
            return found
        theta = found["rope_theta"] * alpha ** (head_dim / (head_dim - 2))
        return {**found, "rope_type": "default", "rope_theta": theta}


class RopeLearned(Rope):
    """`rope_learned(head_dim)`: rotary positions of whole heads, with learned frequency factors (Mistral Large 4)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return {**require_whole(super().value(env, *args)), "rotary_dim": args[0], "learned": True}

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        is_learned = isinstance(value, Mapping) and value.get("learned")
        return super().bind({**value, "rotary_dim": None}, env, *args) if is_learned else {}


class RopeOfLayer(Rope):
    """`rope_of_layer(head_dim, layer_rope_theta[layer])`: rotary positions of whole heads with the layer's own theta.
    None means the config's theta, 0 means no positions (Granite with windows)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        head_dim, theta = args
        own = require_whole(super().value(env, head_dim))
        if theta == 0:
            return {"kind": "none"}
        return own if theta is None else {**own, "theta": float(theta)}

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if isinstance(value, Mapping) and value.get("kind") == "none":
            return bind(args[1], 0, env)
        found = super().bind(value, env, args[0])
        return {**found, **bind(args[1], value["theta"], env)} if found else {}


class Unscaled(Codec):
    """`unscaled(rope(head_dim))`: the same rotary positions without scaling (Molmo 2)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        return {**args[0], "scaling": None}

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        is_plain = isinstance(value, Mapping) and value.get("kind") == "rope" and value["scaling"] is None
        return {"rope_parameters.rope_theta": value["theta"]} if is_plain else {}


class RopeOrNone(Rope):
    """`rope_or_none(head_dim, "full_attention")`: rotary positions; none if the parameters of this kind of layer are
    null (Cohere)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        is_null = (env.get("rope_parameters") or {}).get(args[1], 0) is None
        return {"kind": "none"} if is_null else super().value(env, *args)

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if isinstance(value, Mapping) and value.get("kind") == "none":
            return {f"rope_parameters.{evaluate(args[1], env)}": None}
        return super().bind(value, env, *args)


class RopeLabelled(Rope):
    """`rope_labelled(head_dim, "compress", compress_rope_theta)`: rotary positions with the parameters of this label.
    Without labels in the config, "compress" gets the parameters at its top level, with this theta and by default an
    attention factor of 1; other labels are unscaled with this theta (DeepSeek-V4)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        head_dim, label, theta = args
        stated = env.get("rope_scaling") or env.get("rope_parameters") or {}
        share = env.get("partial_rotary_factor")
        if isinstance(stated.get("main"), Mapping) and isinstance(stated.get("compress"), Mapping):
            own = {"partial_rotary_factor": 1.0 if share is None else share, **stated[label]}
        else:
            if share is None:
                share = env["qk_rope_head_dim"] / head_dim if env.get("qk_rope_head_dim") else env["default_partial"]
            known = {"rope_theta": theta, "partial_rotary_factor": share}
            flat = read_rope_parameters({"rope_parameters": stated})
            own = {"attention_factor": 1.0, **flat, **known} if label == "compress" else known
        return super().value({**env, "rope_parameters": {label: own}, "rope_scaling": None}, head_dim, label)


class RopeField(Codec):
    """`rope_field("llama_4_scaling_beta")`: one of the rotary parameters. Raises ConfigError if it is missing."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        found = read_rope_parameters(env).get(args[0])
        if found is None:
            raise ConfigError(f"rope_parameters.{args[0]}: is missing (a number would do)")
        return found

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return {f"rope_parameters.{evaluate(args[0], env)}": value}


class YarnScale(Codec):
    """`yarn_scale(qk_head_dim)`: the scale of attention scores if the rotary parameters have YaRN's `mscale_all_dim` a
    (DeepSeek): (0.1·a·ln(factor) + 1)² / √width. Otherwise None, attention's default scale."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        found = read_rope_parameters(env)
        share = found.get("mscale_all_dim") if (found.get("rope_type") or "default") != "default" else None
        if not share:
            return None
        magnitude = 0.1 * share * math.log(found["factor"]) + 1.0 if found["factor"] > 1 else 1.0
        return args[0] ** -0.5 * magnitude * magnitude

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        factor = read_rope_parameters(env).get("factor")
        if value is None or not factor or factor <= 1:
            return {}
        for width in try_evaluate(args[0], env):
            share = (math.sqrt(value * math.sqrt(width)) - 1.0) / (0.1 * math.log(factor))
            return {"rope_parameters.mscale_all_dim": round(share, 9)}  # files state few digits
        return {}


class Even(Codec):
    """`even(rope(head_dim), head_dim)`: the position unchanged. Raises ConfigError if the number of rotated channels is
    odd: transformers then fails."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        position, head_dim = args
        width = int(head_dim * (read_rope_parameters(env).get("partial_rotary_factor") or 1.0))
        if width % 2:
            found = f"rotates {width} of a head's {head_dim} channels"
            raise ConfigError(f"partial_rotary_factor: {found} (an even number would do)")
        return position

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        return bind(args[0], value, env)


def require_whole(position: dict[str, Any]) -> dict[str, Any]:
    """`whole(rope(head_dim))`: the position unchanged. Raises ConfigError for a partial rotary factor, which the
    family's classes ignore."""
    if position.get("rotary_dim") is not None:
        raise ConfigError("partial_rotary_factor: is not 1, and these models rotate whole heads (1.0 would do)")
    return position


YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
LLAMA3 = ("low_freq_factor", "high_freq_factor")
LONG = ("short_factor", "long_factor", "attention_factor", "long_attention_factor")

SCALINGS = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")
"""The scalings that a config may name as `rope_type`."""


def _scaling(found: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make the scaling node that rotary parameters describe; None for no scaling. Raises ConfigError for an unknown
    type, and for a factor that is missing."""
    kind = found.get("rope_type") or "default"
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise ConfigError(f"rope_type: {quote(kind)} is not supported (one of: {', '.join(SCALINGS)})")
    longest: Any = env.get("max_position_embeddings")
    trained: Any = (
        env.get("original_max_position_embeddings") or found.get("original_max_position_embeddings") or longest
    )
    if kind in ("linear", "dynamic", "llama3") and not isinstance(found.get("factor"), int | float):
        raise ConfigError(f"rope_parameters.factor: is {quote(found.get('factor'))}, {kind} scaling needs a number")
    if kind == "linear":
        return {"kind": kind, "factor": float(found["factor"])}
    if kind == "proportional":
        share = found.get("partial_rotary_factor")
        return {
            "kind": kind,
            "share": 1.0 if share is None else float(share),
            "factor": float(found.get("factor", 1.0)),
        }
    if kind == "dynamic":  # transformers uses the config's length, whatever the parameters say
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
    """Write out all defaults of a scaling node, so that it inherits nothing when merged into another layer's."""
    if scaling is None:
        return None
    own = Scaling.kinds[scaling["kind"]].fields()
    return {**{each.name: each.default for each in own if each.default is not dataclasses.MISSING}, **scaling}


def _longest(found: Mapping[str, Any], longest: int, trained: int) -> dict[str, Any]:
    """Find longrope's maximum length from its factor or from the config. A factor that gives no whole length is kept as
    an attention factor."""
    factor = found.get("factor")
    if factor is None:
        return {"max_seq_len": longest}
    reached = factor * trained
    if reached == round(reached):
        return {"max_seq_len": round(reached)}
    magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return {"max_seq_len": longest, "attention_factor": magnitude}


def _written(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Make the `rope_parameters` of a scaling node."""
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
    "rope_interleaved": Rope(interleaved=True),
    "rope_reverse": Rope(reverse=True),
    "rope_mscale": RopeMscale(),
    "rope_alpha": RopeAlpha(),
    "rope_learned": RopeLearned(interleaved=True),
    "rope_of_layer": RopeOfLayer(),
    "rope_or_none": RopeOrNone(),
    "rope_labelled": RopeLabelled(interleaved=True),
    "rope_field": RopeField(),
    "yarn_scale": YarnScale(),
    "even": Even(),
    "unscaled": Unscaled(),
    "whole": TwoWay(require_whole, lambda position: (position,)),
}
