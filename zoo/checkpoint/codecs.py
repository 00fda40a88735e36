"""What config.json files say in words of their own: activations and rotary positions."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from zoo.checkpoint.expression import FUNCTIONS, Bindings, Codec, bind, known
from zoo.errors import ConfigError, did_you_mean

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
    "linear": "identity",
    "quick_gelu": "quick_gelu",
    "mish": "mish",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
    "xielu": "xielu",
}
"""transformers' name of an activation, and ours; the first of several is the one that is written."""


class Act(Codec):
    """`act(hidden_act)`: an activation by transformers' name. Of a gated one in a single word ("gated-gelu") the part
    after the dash."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        (name,) = args
        kind = ACTIVATIONS.get(name)
        if kind is None:
            raise ConfigError(f"activation: {name!r} is none of ours{did_you_mean(str(name), ACTIVATIONS)}")
        return {"kind": kind}

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        name = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == kind), None)
        return {} if name is None else bind(args[0], name, env)


def rope_parameters(config: Mapping[str, Any], layer_type: str | None = None) -> dict[str, Any]:
    """The rotary parameters of a config in the new style, whatever its own: `rope_parameters`, or `rope_theta` with
    `rope_scaling`."""
    stated = config.get("rope_parameters")
    if isinstance(stated, Mapping):
        inner = stated.get(layer_type) if layer_type else None
        found = dict(inner if isinstance(inner, Mapping) else stated)
    else:
        found = dict(config.get("rope_scaling") or {})
    if "type" in found:
        found.setdefault("rope_type", found.pop("type"))
    for name in ("rope_theta", "partial_rotary_factor"):
        if config.get(name) is not None:
            found.setdefault(name, config[name])
    return found


class Rope(Codec):
    """`rope(head_dim)`, `rope(head_dim, "sliding_attention")`: rotary positions for heads of this width, of this kind of
    layer where the config tells them apart."""

    interleaved = False

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        head_dim, layer_type = args[0], args[1] if len(args) > 1 else None
        found = rope_parameters(env, layer_type)
        partial = found.get("partial_rotary_factor") or 1.0
        width = int(head_dim * partial)
        if "rope_theta" not in found and "default_theta" not in env:
            raise ConfigError("rope_theta: is missing (rope_parameters or rope_theta states it)")
        return {
            "kind": "rope",
            "theta": float(found.get("rope_theta", env.get("default_theta"))),
            "rotary_dim": None if width == head_dim else width,
            "interleaved": self.interleaved,
            "scaling": _scaling(found, env),
        }

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if not isinstance(value, Mapping) or value.get("kind") != "rope":
            return {}
        scaling = value.get("scaling")
        fields = {"rope_type": "default"} if scaling is None else _written(scaling)
        fields["rope_theta"] = value["theta"]
        for head_dim in known(args[0], env):
            if value.get("rotary_dim"):
                fields["partial_rotary_factor"] = value["rotary_dim"] / head_dim
        layer_type = [layer for arg in args[1:] for layer in known(arg, env)]
        found: Bindings = {f"rope_parameters.{layer_type[0]}" if layer_type else "rope_parameters": fields}
        if scaling is not None and scaling["kind"] == "longrope":
            found["max_position_embeddings"] = scaling["max_seq_len"]
        return found


class RopeInterleaved(Rope):
    """`rope_interleaved(head_dim)`: the same with neighbouring channels as the pairs."""

    interleaved = True


YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
LLAMA3 = ("low_freq_factor", "high_freq_factor")
LONG = ("short_factor", "long_factor", "attention_factor")


def _scaling(found: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling node of rotary parameters."""
    kind = found.get("rope_type") or "default"
    if kind == "default":
        return None
    known_kinds = ("linear", "dynamic", "yarn", "llama3", "longrope")
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in known_kinds:
        raise ConfigError(f"rope_type: {kind!r} is none of ours (one of: {', '.join(known_kinds)})")
    trained = found.get("original_max_position_embeddings") or env.get("original_max_position_embeddings")
    trained = trained or env.get("max_position_embeddings")
    if kind == "linear":
        return {"kind": kind, "factor": float(found["factor"])}
    if kind == "dynamic":  # the reference takes the length that the config states, whatever the parameters say
        return {"kind": kind, "factor": float(found["factor"]), "original_max_seq_len": env["max_position_embeddings"]}
    if kind == "longrope":
        chosen = {name: found[name] for name in LONG if found.get(name) is not None}
        return {"kind": kind, "original_max_seq_len": trained, "max_seq_len": _longest(found, env, trained), **chosen}
    names = YARN if kind == "yarn" else LLAMA3
    chosen = {name: found[name] for name in names if found.get(name) is not None}
    return {"kind": kind, "factor": float(found["factor"]), "original_max_seq_len": trained, **chosen}


def _longest(found: Mapping[str, Any], env: Mapping[str, Any], trained: int) -> int:
    factor = found.get("factor")
    if factor is None or env.get("original_max_position_embeddings"):
        return env["max_position_embeddings"]
    return round(factor * trained)


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


FUNCTIONS |= {"act": Act(), "rope": Rope(), "rope_interleaved": RopeInterleaved()}
