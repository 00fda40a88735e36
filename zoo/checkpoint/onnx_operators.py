# N rows sorted by expert, E experts
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportIndexIssue=false
"""Define operators of a recorded model that ONNX does not have, as functions of ONNX's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

import zoo.kernels.grouped_products  # noqa: F401 - registers its operators

zoo_opset = Opset("zoo", 1)


@script(zoo_opset, default_opset=op)
def multiply_groups(x, weight, offsets) -> FLOAT:
    """Multiply each run of rows of x [N, d_in] by the weight [d_out, d_in] of its expert; experts without rows are
    skipped. Returns [N, d_out], with zeros in the rows after the last run."""
    ends = op.Cast(offsets, to=7)
    zero = op.Constant(value_ints=[0])
    start = op.Constant(value_ints=[0])
    count = op.Squeeze(op.Shape(weight, start=0, end=1))
    y = op.MatMul(op.Slice(x, zero, zero, zero), op.Transpose(op.Gather(weight, 0), perm=[1, 0]))
    for expert in range(count):
        stop = op.Slice(ends, op.Unsqueeze(expert, zero), op.Unsqueeze(expert + 1, zero), zero)
        if op.Squeeze(stop > start):
            product = op.MatMul(op.Slice(x, start, stop, zero), op.Transpose(op.Gather(weight, expert), perm=[1, 0]))
            more = op.Concat(y, product, axis=0)
        else:
            more = op.Identity(y)
        y = more
        start = stop
    rest = op.Concat(op.Shape(x, start=0, end=1) - op.Shape(y, start=0, end=1), op.Shape(y, start=1, end=2), axis=0)
    return op.Concat(y, op.CastLike(op.Expand(0.0, rest), x), axis=0)


def grouped_linear(x: Any, weight: Any, offsets: Any, native: bool, computing: int = 1, chosen: int = 1) -> Any:
    """Translate zoo's grouped matrix product, which multiplies the rows of each expert by its weight."""
    return multiply_groups(x, weight, offsets)


def sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Translate a stable sort to TopK, which also puts the first of equal values first."""
    return op.TopK(x, op.Gather(op.Shape(x), [dim]), axis=dim, largest=int(descending), sorted=1)


def searchsorted(
    edges: Any, x: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """Translate a search in one row of edges [E], as a count of the edges before each value."""
    compare = op.LessOrEqual if right or side == "right" else op.Less
    before = compare(edges, op.Unsqueeze(x, [-1]))
    return op.ReduceSum(op.Cast(before, to=6 if out_int32 else 7), [-1], keepdims=0)


def cummax(x: Any, dim: int) -> Any:
    """Translate the running maximum along the last axis of x [B, T]: each place is compared with all places up to
    it."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    places = op.Range(zero, op.Squeeze(op.Shape(x, start=1, end=2)), one)
    seen = op.LessOrEqual(places, op.Unsqueeze(places, [1]))  # T T
    shown = op.Where(seen, op.Unsqueeze(x, [1]), op.ReduceMin(x))  # B T T
    return op.ReduceMax(shown, [2], keepdims=0), op.ArgMax(shown, axis=2, keepdims=0)


def expm1(x: Any) -> Any:
    """Translate eˣ − 1, near 0 as 2t / (1 − t) with t = tanh(x/2): torch's own translation cancels there."""
    t = op.Tanh(op.Mul(x, 0.5))
    near = op.Div(op.Add(t, t), op.Sub(1.0, t))
    return op.Where(op.Less(op.Abs(x), 1.0), near, op.Sub(op.Exp(x), 1.0))


def hypot(a: Any, b: Any) -> Any:
    """Translate √(a² + b²)."""
    return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.zoo.grouped_linear.default: grouped_linear,
    torch.ops.aten.sort.stable: sort,
    torch.ops.aten.cummax.default: cummax,
    torch.ops.aten.searchsorted.Tensor: searchsorted,
    torch.ops.prims.hypot.default: hypot,
    torch.ops.aten.expm1.default: expm1,
    torch.ops.aten.hypot.default: hypot,
}
