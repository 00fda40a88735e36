"""Read and write activations by transformers' names, T5's feed-forwards, biases and rounded numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError, did_you_mean
from zoo.families.binding import UNSAID, TwoWay
from zoo.families.expression import FUNCTIONS, PlainFunction
from zoo.untrusted.printable import quote

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_10": "gelu_clipped",
    "relu": "relu",
    "relu2": "relu2",
    "sqrelu": "relu2",
    "sigmoid": "sigmoid",
    "linear": "identity",
    "quick_gelu": "quick_gelu",
    "mish": "mish",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
    "relu6": "relu6",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "sqrtsoftplus": "sqrtsoftplus",
    "xielu": "xielu",
}
"""Zoo's name of an activation, by transformers' name. The first of several names of transformers is written."""


def read_activation(name: Any) -> dict[str, Any]:
    """`act(hidden_act)`: the activation of this name. Raises ConfigError for an unknown name."""
    kind = ACTIVATIONS.get(name)
    if kind is None:
        raise ConfigError(f"activation: {quote(name)} is not supported{did_you_mean(str(name), ACTIVATIONS)}")
    return {"kind": kind}


def write_activation(node: object) -> tuple[str] | None:
    """Invert `act`."""
    kind = node.get("kind") if isinstance(node, Mapping) else None
    return next(((theirs,) for theirs, ours in ACTIVATIONS.items() if ours == kind), None)


def read_t5_ffn(is_gated: bool, activation: str, d_ff: int) -> dict[str, Any]:
    """`dense_or_gated(is_gated, activation, d_ff)`: T5's feed-forward, gated or not."""
    kind = "gated" if is_gated else "mlp"
    return {"kind": kind, "d_ff": d_ff, "activation": read_activation(activation), "bias": False}


def write_t5_ffn(node: object) -> tuple[Any, ...] | None:
    """Invert `dense_or_gated`."""
    if not isinstance(node, Mapping) or node.get("kind") not in ("gated", "mlp"):
        return None
    return node["kind"] == "gated", *(write_activation(node["activation"]) or (UNSAID,)), node["d_ff"]


def read_t5_activation(projection: str) -> str:
    """Read the activation from T5's `feed_forward_proj`; "gated-gelu" means the tanh approximation."""
    return "gelu_new" if projection == "gated-gelu" else projection.split("-")[-1]


def write_t5_projection(is_gated: bool, activation: str) -> str:
    """Write T5's `feed_forward_proj`."""
    if not is_gated:
        return activation
    return "gated-gelu" if activation in ("gelu_new", "gelu_pytorch_tanh") else f"gated-{activation}"


def round_to_bf16(value: float) -> float:
    """`bf16`: round a positive number to the nearest bfloat16, which has 8 significant bits."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(fraction * 256), exponent - 8)


def round_up(number: float, multiple: int) -> int:
    """`round_up(width, multiple)`: the smallest multiple of `multiple` that is at least `width`."""
    return int((number + multiple - 1) // multiple) * multiple


def read_bias(inputs: bool, output: bool | None = None) -> bool | str:
    """`bias_of(attention_bias, attention_out_bias)`: which linear layers of attention have a bias, from one field for
    queries, keys and values and one for the output; `bias_of(attention_bias)` from a single field for all."""
    output = inputs if output is None else output
    return bool(inputs) if bool(inputs) == bool(output) else "qkv" if inputs else "o"


FUNCTIONS |= {
    "act": TwoWay(read_activation, write_activation),
    "dense_or_gated": TwoWay(read_t5_ffn, write_t5_ffn),
    "bias_of": TwoWay(read_bias, lambda bias: (bias in (True, "qkv"), bias in (True, "o"))),
    "bf16": PlainFunction(round_to_bf16),
    "round_up": TwoWay(round_up, lambda width: (width, width)),  # a multiple of itself
    "t5_activation": PlainFunction(read_t5_activation),
    "t5_projection": PlainFunction(write_t5_projection),
    "t5_gated": PlainFunction(lambda projection: projection.startswith("gated-")),
}
