"""List torch's operations on shadows, by the name that a forward pass uses.

Each operation gives its result's shape and dtype, and the tensors that autograd saves. These follow torch 2.13's
derivatives.yaml; tests/costs/shadow/test_shadow.py compares each with torch itself. Python numbers that autograd saves
are not counted. A product saves an operand only if the other operand requires a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.costs.shadow import elementwise, norms, products, reductions
from zoo.costs.shadow.elementwise import UNARY, add, compare, divide, divide_whole, logical_not, multiply, pick_extreme
from zoo.costs.shadow.reductions import maximum_along, mean, sum_along


def _pick(module: Any, *names: str) -> dict[str, Callable[..., Any]]:
    return {name: getattr(module, name) for name in names}


METHODS: dict[str, Callable[..., Any]] = {
    **UNARY,
    **_pick(reductions, "mean", "logsumexp", "softmax", "cumsum", "cummax", "flip", "topk", "argsort", "argmax"),
    **_pick(reductions, "gather", "scatter", "scatter_reduce", "index_add", "repeat_interleave"),
    **{"sum": sum_along, "max": maximum_along, "masked_fill": elementwise.masked_fill},
    **{"maximum": pick_extreme, "minimum": pick_extreme, "logical_not": logical_not, "__invert__": logical_not},
    **{"__neg__": UNARY["neg"], "__abs__": UNARY["abs"], "gt": compare, "lt": compare},
}
"""Methods of a tensor."""

OPERATORS: dict[str, Callable[..., Any]] = {
    **{"add": add, "sub": add, "mul": multiply, "truediv": divide},
    **{"pow": elementwise.power, "matmul": products.matmul},
    **{name: divide_whole for name in ("floordiv", "mod", "and", "or", "xor")},
}
"""Python's operators, each also in its reflected form (`__radd__` …)."""

COMPARISONS = {name: compare for name in ("lt", "le", "gt", "ge", "eq", "ne")}

TORCH: dict[str, Callable[..., Any]] = {
    **_pick(reductions, "cat", "stack"),
    **_pick(elementwise, "where", "addcmul", "hypot", "logaddexp"),
    **_pick(products, "einsum", "baddbmm"),
    **{"minimum": pick_extreme, "maximum": pick_extreme, "sum": sum_along, "mean": mean},
}
"""Functions of torch."""

FUNCTIONAL: dict[str, Callable[..., Any]] = {
    **_pick(norms, "layer_norm", "rms_norm", "dropout"),
    **_pick(products, "linear", "conv1d", "embedding"),
    "pad": reductions.pad,
}
"""Functions of torch.nn.functional."""
