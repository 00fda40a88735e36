# N rows, E experts; otherwise shapes here are any
"""Apply matrix products (with autocast), convolutions, experts and embedding look-ups to shadows."""

from __future__ import annotations

import math
from typing import Any

from zoo.costs.shadow.dtypes import FLOAT32, ShadowDtype
from zoo.costs.shadow.strides import broadcast, dense_strides
from zoo.costs.shadow.tape import UnknownOperation, current_tape
from zoo.costs.shadow.tensor import Core, is_shadow, make_result, save_operands


def cast_for_autocast(*tensors: Any) -> list[Any]:
    """Cast a product's float32 operands under autocast. Autocast caches the copy of a weight for the whole pass, so the
    copy is `held` as weights are."""
    low = current_tape().autocast
    if low is None:
        return list(tensors)
    return [_cast_operand(each, low) if is_shadow(each) and each.dtype is FLOAT32 else each for each in tensors]


def _cast_operand(x: Core, dtype: ShadowDtype) -> Any:
    copy = x.to(dtype)
    if x.storage.held and x.wants_grad:
        copy.storage.hold()
    return copy


def bmm(a: Core, b: Core, name: str = "matmul") -> Any:
    """Multiply batched matrices: [N, A, B] · [N, B, C]."""
    a, b = cast_for_autocast(a, b)
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1] or a.dtype is not b.dtype:
        raise ValueError(f"a product of {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    return make_result(name, [a, b], (a.shape[0], a.shape[1], b.shape[2]), a.dtype, saves=save_operands(a, b))


def matmul(a: Core, b: Core) -> Any:
    lead = broadcast(a.shape[:-2], b.shape[:-2])
    flat = [each.expand(*lead, *each.shape[-2:]).reshape(math.prod(lead), *each.shape[-2:]) for each in (a, b)]
    return bmm(*flat).view(*lead, a.shape[-2], b.shape[-1])


def baddbmm(x: Core, a: Core, b: Core) -> Any:
    x, a, b = cast_for_autocast(x, a, b)
    return make_result("baddbmm", [x, a, b], (*a.shape[:2], b.shape[2]), a.dtype, saves=save_operands(a, b))


def linear(x: Core, weight: Core, bias: Core | None = None, *, name: str = "linear") -> Any:
    """Multiply x [..., d_in] by the transpose of weight [d_out, d_in]. Autograd saves x as a matrix of rows: a copy if
    x's strides allow no view."""
    x, weight, bias = cast_for_autocast(x, weight, bias)
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"a product of shapes {x.shape} and {weight.shape}")
    rows = x.reshape(-1, x.shape[-1])
    shape, saves = (rows.shape[0], weight.shape[0]), save_operands(rows, weight)
    y = make_result(name, [rows, weight, bias], shape, rows.dtype, saves=saves)
    return y.view(*x.shape[:-1], weight.shape[0])


def einsum(equation: str, a: Core, b: Core) -> Any:
    """Contract two operands as torch's sumproduct_pair does, by one batched product."""
    inputs, output = equation.replace(" ", "").split("->")
    left, right = inputs.split(",")
    names = set(left) & set(right) | set(output)
    if not set(left) | set(right) <= names or any(len(set(each)) < len(each) for each in (left, right, output)):
        raise UnknownOperation(f"einsum {equation}")
    sizes = dict(zip(left, a.shape, strict=True)) | dict(zip(right, b.shape, strict=True))
    shared = [each for each in output if each in left and each in right]
    only_left = [each for each in output if each in left and each not in right]
    only_right = [each for each in output if each in right and each not in left]
    summed = [each for each in left if each not in output]

    def laid(x: Core, names: str, *groups: list[str]) -> Any:
        order = [names.index(each) for group in groups for each in group]
        return x.permute(*order).reshape(*(math.prod(sizes[each] for each in group) for group in groups))

    y = bmm(laid(a, left, shared, only_left, summed), laid(b, right, shared, summed, only_right), "einsum")
    made = [*shared, *only_left, *only_right]
    return y.view(*(sizes[each] for each in made)).permute(*(made.index(each) for each in output))


def solve_triangular(a: Core, b: Core, **_: Any) -> Any:
    *lead, rows, columns = b.shape  # the result is column-major
    strides = (*(step * rows * columns for step in dense_strides(lead)), 1, rows)
    return make_result("solve", [a, b], b.shape, b.dtype, saves=[a], saves_result=True, strides=strides)


def conv1d(x: Core, weight: Core, bias: Core | None = None, *, groups: int = 1, dilation: int = 1) -> Any:
    """Convolve x [B, d_in, T] with weight [d_out, d_in / groups, width]."""
    x, weight, bias = cast_for_autocast(x, weight, bias)
    shape = (x.shape[0], weight.shape[0], x.shape[2] - (weight.shape[2] - 1) * dilation)
    return make_result("conv", [x, weight, bias], shape, x.dtype, saves=[x, weight])


def convolve_tokens(x: Core, weight: Core, bias: Core | None, groups: int, dilation: int) -> Any:
    """Convolve x [B, T, d_in] along the tokens as `zoo.kernels.depthwise` does. Zoo's own operator (on a CPU,
    depthwise, in float32 without autocast) gives a result with x's layout and saves x and the weight."""
    plain = current_tape().autocast is None and x.dtype == weight.dtype == FLOAT32
    if x.is_cuda or not plain or weight.shape[1] > 1 or x.shape[2] != weight.shape[0]:
        return conv1d(x.transpose(1, 2), weight, bias, groups=groups, dilation=dilation).transpose(1, 2)
    shape = (x.shape[0], x.shape[1] - (weight.shape[2] - 1) * dilation, x.shape[2])
    return make_result("conv", [x, weight, bias], shape, x.dtype, saves=[x, weight])


def grouped_linear(x: Core, weight: Core, offsets: Any) -> Any:
    """Multiply x [N, d_in], sorted by expert, by weight [E, d_out, d_in] with Zoo's own operator, which saves x, the
    weight and the offsets."""
    x, weight = cast_for_autocast(x, weight)
    shape = (x.shape[0], weight.shape[1])
    return make_result("experts", [x, weight], shape, x.dtype, saves=[x, weight, offsets])


def embedding(ids: Core, weight: Core) -> Any:
    return make_result("embedding", [weight], (*ids.shape, weight.shape[1]), weight.dtype, saves=[ids])
