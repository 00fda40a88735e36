"""List torch's operations on shadows, by the name that a forward pass uses.

Each operation gives its result's shape and dtype, and the tensors that autograd saves. These follow torch 2.13's
derivatives.yaml; tests/costs/shadow/test_shadow.py compares each with torch itself. Saved numbers take no memory here.
A product saves an operand only if the other operand requires a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.costs.shadow.elementwise import (
    UNARY,
    add,
    addcmul,
    compare,
    divide,
    divide_whole,
    hypot,
    logaddexp,
    logical_not,
    masked_fill,
    multiply,
    pick_extreme,
    power,
    where,
)
from zoo.costs.shadow.norms import dropout, layer_norm, rms_norm
from zoo.costs.shadow.products import baddbmm, conv1d, einsum, embedding, linear, matmul
from zoo.costs.shadow.reductions import (
    argmax,
    argsort,
    cat,
    cummax,
    cumsum,
    flip,
    gather,
    index_add,
    logsumexp,
    maximum_along,
    mean,
    pad,
    repeat_interleave,
    scatter,
    scatter_reduce,
    softmax,
    stack,
    sum_along,
    topk,
)

METHODS: dict[str, Callable[..., Any]] = {
    **UNARY,
    **{"sum": sum_along, "mean": mean, "logsumexp": logsumexp, "softmax": softmax, "cumsum": cumsum, "cummax": cummax},
    "flip": flip,
    **{"topk": topk, "max": maximum_along, "argsort": argsort, "argmax": argmax, "gather": gather, "scatter": scatter},
    "scatter_reduce": scatter_reduce,
    **{"index_add": index_add, "repeat_interleave": repeat_interleave, "masked_fill": masked_fill},
    **{"maximum": pick_extreme, "minimum": pick_extreme, "logical_not": logical_not, "__invert__": logical_not},
    **{"__neg__": UNARY["neg"], "__abs__": UNARY["abs"], "gt": compare, "lt": compare},
}
"""Methods of a tensor."""

OPERATORS: dict[str, Callable[..., Any]] = {
    **{"add": add, "sub": add, "mul": multiply, "truediv": divide, "pow": power, "matmul": matmul},
    **{name: divide_whole for name in ("floordiv", "mod", "and", "or", "xor")},
}
"""Python's operators, each also in its reflected form (`__radd__` …)."""

COMPARISONS = {name: compare for name in ("lt", "le", "gt", "ge", "eq", "ne")}

TORCH: dict[str, Callable[..., Any]] = {
    **{"cat": cat, "stack": stack, "where": where, "einsum": einsum, "baddbmm": baddbmm, "addcmul": addcmul},
    **{"minimum": pick_extreme, "maximum": pick_extreme, "sum": sum_along, "mean": mean},
    **{"hypot": hypot, "logaddexp": logaddexp},
}
"""Functions of torch."""

FUNCTIONAL: dict[str, Callable[..., Any]] = {
    **{"layer_norm": layer_norm, "rms_norm": rms_norm, "linear": linear, "pad": pad, "conv1d": conv1d},
    **{"embedding": embedding, "dropout": dropout},
}
"""Functions of torch.nn.functional."""
