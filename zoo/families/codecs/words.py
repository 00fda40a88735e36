"""What config.json files say in words: activations, and feed-forwards named after them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError, did_you_mean
from zoo.families.expression import FUNCTIONS, Bindings, Codec, Plain, bind

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


class DenseOrGated(Codec):
    """`dense_or_gated(gated, activation, d_ff)`: a feed-forward that a flag makes a gated one (T5)."""

    def value(self, env: Mapping[str, Any], *args: Any) -> Any:
        is_gated, name, d_ff = args
        return {
            "kind": "gated" if is_gated else "mlp",
            "d_ff": d_ff,
            "activation": Act().value(env, name),
            "bias": False,
        }

    def bind(self, value: Any, env: Mapping[str, Any], *args: ast.expr) -> Bindings:
        if not isinstance(value, Mapping) or value.get("kind") not in ("gated", "mlp"):
            return {}
        found = bind(args[0], value["kind"] == "gated", env) | Act().bind(value["activation"], env, args[1])
        return found | bind(args[2], value["d_ff"], env)


def t5_activation(projection: str) -> str:
    """The activation that T5's `feed_forward_proj` names: GELU by its tanh approximation where it is a gate."""
    return "gelu_new" if projection == "gated-gelu" else projection.split("-")[-1]


def t5_projection(is_gated: bool, activation: str) -> str:
    """The `feed_forward_proj` that says so."""
    if not is_gated:
        return activation
    return "gated-gelu" if activation in ("gelu_new", "gelu_pytorch_tanh") else f"gated-{activation}"


FUNCTIONS |= {
    "act": Act(),
    "dense_or_gated": DenseOrGated(),
    "t5_activation": Plain(t5_activation),
    "t5_projection": Plain(t5_projection),
    "t5_gated": Plain(lambda projection: projection.startswith("gated-")),
}
