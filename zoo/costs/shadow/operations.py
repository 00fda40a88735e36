# N rows, E experts; otherwise shapes here are any
"""torch's operations on shadows: the shape and dtype of each result, and the tensors that autograd saves.

From torch 2.13's derivatives.yaml; tests/test_shadow.py holds each against torch itself. Numbers are saved as numbers,
so that only tensors matter. `saves` of a product names an operand only where the other one wants a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from zoo.costs.shadow.tensor import (
    BOOL,
    FLOAT32,
    INT64,
    ShadowDtype,
    UnknownOperation,
    broadcast,
    dense,
    elementwise_strides,
    is_shadow,
    operation,
    promote,
    tape,
)

# ---------------------------------------------------------------- elementwise, of one tensor

KEEPS_INPUT = (
    *("abs", "clamp", "cos", "gelu", "hardswish", "leaky_relu", "log", "log1p", "mish", "relu6", "silu", "sin"),
    *("softplus", "square"),
)
KEEPS_RESULT = ("exp", "expm1", "relu", "rsqrt", "sigmoid", "sqrt", "tanh")
KEEPS_NOTHING = ("ceil", "floor", "frac", "neg", "sign", "tril")

OPTIONS = {
    **{"clamp": ("min", "max"), "gelu": ("approximate",), "leaky_relu": ("negative_slope",)},
    **{"softplus": ("beta", "threshold"), "tril": ("diagonal",)},
}
"""What an operation may be given besides its tensor: numbers and names that change nothing of what is saved."""

OF_INTEGERS = ("abs", "clamp", "relu", "relu6", "square")
"""Operations that save something and give integers for integers; the others give floats."""


def refuse_others(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The same operation, which raises UnknownOperation for arguments that it does not take. `input` is torch's name
    for the first tensor; `inplace=False` and `out=None` say nothing."""

    def checked(*given: Any, **options: Any) -> Any:
        if "input" in options:
            given = (options.pop("input"), *given)
        if options.get("inplace") is False:
            del options["inplace"]
        if "out" in options and options["out"] is None:
            del options["out"]
        try:
            return run(*given, **options)
        except TypeError as error:
            said = ", ".join((*(type(each).__name__ for each in given), *(f"{key}=" for key in options)))
            raise UnknownOperation(f"{name}({said})") from error

    return checked


def _elementwise(name: str, keeps: str) -> Callable[..., Any]:
    known = OPTIONS.get(name, ())

    def run(x: Any, *given: Any, **options: Any) -> Any:
        if (
            len(given) > len(known)
            or not set(options) <= set(known)
            or any(map(is_shadow, (*given, *options.values())))
        ):
            raise TypeError(f"{name} takes {', '.join(known) or 'a tensor alone'}")
        limits = (*given, *options.values())
        whole = keeps == "nothing" or name in OF_INTEGERS
        if name == "clamp":
            whole = not any(isinstance(each, float) for each in limits)
        dtype = x.dtype if x.dtype.is_floating_point or whole else FLOAT32
        saves, strides = [x] if keeps == "input" else [], elementwise_strides(x.shape, [x])
        return operation(name, [x], x.shape, dtype, saves=saves, saves_result=keeps == "result", strides=strides)

    return run


UNARY = {
    name: refuse_others(name, _elementwise(name, keeps))
    for keeps, names in (("input", KEEPS_INPUT), ("result", KEEPS_RESULT), ("nothing", KEEPS_NOTHING))
    for name in names
}


# ---------------------------------------------------------------- elementwise, of several


def _together(
    name: str,
    operands: Sequence[Any],
    saves: Sequence[Any] = (),
    dtype: ShadowDtype | None = None,
    saves_result: bool = False,
) -> Any:
    """An elementwise operation, broadcast and promoted as torch does: numbers and tensors without dimensions count only
    where theirs is a higher kind of dtype."""
    tensors = [each for each in operands if is_shadow(each)]
    if strange := [each for each in operands if not is_shadow(each) and not isinstance(each, int | float)]:
        raise TypeError(f"{name} of a tensor and a {type(strange[0]).__name__}")
    shape = broadcast(*(each.shape for each in tensors))
    kept = [each for each in saves if is_shadow(each)]
    strides = elementwise_strides(shape, tensors)
    dtype = dtype or _promoted(operands)
    return operation(name, tensors, shape, dtype, saves=kept, saves_result=saves_result, strides=strides)


def _promoted(operands: Sequence[Any]) -> ShadowDtype:
    """Tensors with dimensions decide, then those without, then numbers: the next ones count where of a higher kind."""
    tensors = [each for each in operands if is_shadow(each)]
    levels = (
        [each.dtype for each in tensors if each.shape],
        [each.dtype for each in tensors if not each.shape],
        [_number(each) for each in operands if not is_shadow(each)],
    )
    found = None
    for dtypes in levels:
        higher = [dtype for dtype in dtypes if found is None or dtype.rank > found.rank]
        found = promote(*higher) if higher else found
    assert found is not None
    return found


def _number(value: Any) -> ShadowDtype:
    """The dtype that torch takes a number for."""
    if isinstance(value, bool):
        return BOOL
    return INT64 if isinstance(value, int) else FLOAT32


def _grad(x: Any) -> bool:
    return is_shadow(x) and x.wants_grad


def add(a: Any, b: Any) -> Any:
    return _together("add", (a, b))


def mul(a: Any, b: Any) -> Any:
    return _together("mul", (a, b), [*([a] if _grad(b) else []), *([b] if _grad(a) else [])])


def div(a: Any, b: Any) -> Any:
    if _promoted((a, b)).rank < 2:
        return _together("div", (a, b), dtype=FLOAT32)
    if not is_shadow(a):  # a number over a tensor is its reciprocal, which is kept, times the number
        inverse = operation("reciprocal", [b], b.shape, b.dtype, saves_result=True)
        return mul(inverse, a)
    return _together("div", (a, b), [b, *([a] if _grad(b) else [])])


def power(a: Any, b: Any) -> Any:
    return _together("pow", (a, b), [a, b], saves_result=_grad(b))


def divide_whole(a: Any, b: Any) -> Any:
    """`//`, `%` and the logical operators, of tensors that want no gradient."""
    if _grad(a) or _grad(b):
        raise UnknownOperation("// or %")
    return _together("whole", (a, b))


def compared(a: Any, b: Any) -> Any:
    return _together("compare", (a, b), dtype=BOOL)


def extreme(a: Any, b: Any) -> Any:
    """The larger or smaller of two: both are kept, to see which it was."""
    if not (is_shadow(a) and is_shadow(b)):
        raise TypeError("the larger or smaller of two tensors")
    return _together("extreme", (a, b), (a, b))


def where(condition: Any, a: Any, b: Any) -> Any:
    chosen = condition
    shape = broadcast(chosen.shape, *(each.shape for each in (a, b) if is_shadow(each)))
    return operation("where", [a, b], shape, _promoted((a, b)), saves=[chosen])


def masked_fill(x: Any, mask: Any, value: float) -> Any:
    if is_shadow(value):
        raise TypeError("a number to fill with")
    shape = broadcast(x.shape, mask.shape)
    return operation("masked_fill", [x], shape, x.dtype, saves=[mask], strides=elementwise_strides(shape, [x]))


def addcmul(x: Any, a: Any, b: Any) -> Any:
    return _together("addcmul", (x, a, b), [*([a] if _grad(b) else []), *([b] if _grad(a) else [])])


def logical_not(x: Any) -> Any:
    return operation("not", [], x.shape, BOOL)


# ---------------------------------------------------------------- along a dimension


def _reduced(x: Any, dim: Any, keepdim: bool) -> tuple[int, ...]:
    dims = range(x.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    if is_shadow(dim):
        raise TypeError("a dimension")
    gone = {x.at(each) for each in dims}
    return tuple(1 if at in gone else size for at, size in enumerate(x.shape) if keepdim or at not in gone)


def total(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    dtype = x.dtype if x.dtype.is_floating_point else INT64
    return operation("sum", [x], _reduced(x, dim, keepdim), dtype)


def mean(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return operation("mean", [x], _reduced(x, dim, keepdim), x.dtype)


def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    return operation("logsumexp", [x], _reduced(x, dim, keepdim), x.dtype, saves=[x], saves_result=True)


def softmax(x: Any, dim: int, dtype: ShadowDtype | None = None) -> Any:
    return operation("softmax", [x], x.shape, dtype or x.dtype, saves_result=True)


def cumsum(x: Any, dim: int) -> Any:
    return operation("cumsum", [x], x.shape, x.dtype if x.dtype.is_floating_point else INT64)


class Pair(tuple):
    """Values and indices."""

    values = property(lambda self: self[0])
    indices = property(lambda self: self[1])


def _chosen(name: str, x: Any, shape: tuple[int, ...], saves: Sequence[Any] = ()) -> Pair:
    """Values picked out along a dimension; where they were is kept."""
    where_from = operation("indices", [], shape, INT64)
    return Pair((operation(name, [x], shape, x.dtype, saves=[*saves, where_from]), where_from))


def topk(x: Any, k: int, dim: int = -1) -> Pair:
    return _chosen("topk", x, (*x.shape[: x.at(dim)], k, *x.shape[x.at(dim) + 1 :]))


def maximum_along(x: Any, dim: int, keepdim: bool = False) -> Pair:
    return _chosen("max", x, _reduced(x, dim, keepdim))


def cummax(x: Any, dim: int) -> Pair:
    return _chosen("cummax", x, x.shape, [x])


def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    return operation("argsort", [], x.shape, INT64)


def argmax(x: Any, dim: int, keepdim: bool = False) -> Any:
    return operation("argmax", [], _reduced(x, dim, keepdim), INT64)


# ---------------------------------------------------------------- picking and placing


def gather(x: Any, dim: int, places: Any) -> Any:
    return operation("gather", [x], places.shape, x.dtype, saves=[x, places])


def scatter(x: Any, dim: int, places: Any, value: Any) -> Any:
    return operation("scatter", [x, value], x.shape, x.dtype, saves=[places])


def index(x: Any, picks: Sequence[tuple[int, Any]]) -> Any:
    """x at tensors of indices along dimensions that lie together."""
    first, last = picks[0][0], picks[-1][0]
    picked = broadcast(*(each.shape for _, each in picks))
    shape = (*x.shape[:first], *picked, *x.shape[last + 1 :])
    return operation("index", [x], shape, x.dtype, saves=[each for _, each in picks])


def index_add(x: Any, dim: int, places: Any, source: Any) -> Any:
    return operation(
        "index_add", [x, source], x.shape, x.dtype, saves=[places, *([source] if source.wants_grad else [])]
    )


def repeat_interleave(x: Any, times: int, dim: int | None = None) -> Any:
    if is_shadow(times):
        raise UnknownOperation("repeat_interleave(tensor)")
    if dim is None:
        return repeat_interleave(x.flatten(), times, 0)
    at = x.at(dim)
    return operation("repeat", [x], (*x.shape[:at], x.shape[at] * times, *x.shape[at + 1 :]), x.dtype)


def pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant":
        raise UnknownOperation(f"pad, mode {mode}")
    shape = list(x.shape)
    for place, (low, high) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        shape[-1 - place] += low + high
    return operation("pad", [x], shape, x.dtype)


def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    at = tensors[0].at(dim)
    shape = list(tensors[0].shape)
    shape[at] = sum(each.shape[at] for each in tensors)
    return operation("cat", tensors, shape, promote(*(each.dtype for each in tensors)))


def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    at = dim % (tensors[0].ndim + 1)
    shape = (*tensors[0].shape[:at], len(tensors), *tensors[0].shape[at:])
    return operation("stack", tensors, shape, promote(*(each.dtype for each in tensors)))


# ---------------------------------------------------------------- products of matrices


def _lowered(*tensors: Any) -> list[Any]:
    """A product's operands under autocast: float32 ones are cast, a weight's copy being kept for all of the pass, as
    weights are."""
    low = tape().autocast
    if low is None:
        return list(tensors)
    return [_low(each, low) if is_shadow(each) and each.dtype is FLOAT32 else each for each in tensors]


def _low(x: Any, dtype: ShadowDtype) -> Any:
    copy = x.to(dtype)
    if x.storage.held and x.wants_grad:
        copy.storage.hold()
    return copy


def bmm(a: Any, b: Any, name: str = "matmul") -> Any:
    """[N, A, B] · [N, B, C]."""
    a, b = _lowered(a, b)
    if a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1] or a.dtype is not b.dtype:
        raise ValueError(f"a product of {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    saves = [*([a] if b.wants_grad else []), *([b] if a.wants_grad else [])]
    return operation(name, [a, b], (a.shape[0], a.shape[1], b.shape[2]), a.dtype, saves=saves)


def matmul(a: Any, b: Any) -> Any:
    lead = broadcast(a.shape[:-2], b.shape[:-2])
    flat = [each.expand(*lead, *each.shape[-2:]).reshape(math.prod(lead), *each.shape[-2:]) for each in (a, b)]
    return bmm(*flat).view(*lead, a.shape[-2], b.shape[-1])


def baddbmm(x: Any, a: Any, b: Any) -> Any:
    x, a, b = _lowered(x, a, b)
    saves = [*([a] if b.wants_grad else []), *([b] if a.wants_grad else [])]
    return operation("baddbmm", [x, a, b], (a.shape[0], a.shape[1], b.shape[2]), a.dtype, saves=saves)


def linear(x: Any, weight: Any, bias: Any = None, *, name: str = "linear") -> Any:
    """x [..., d_in] · weightᵀ [d_out, d_in]: keeps x as a matrix of rows, a copy where x does not lie so."""
    x, weight, bias = _lowered(x, weight, bias)
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"a product of shapes {x.shape} and {weight.shape}")
    rows = x.reshape(-1, x.shape[-1])
    saves = [*([rows] if weight.wants_grad else []), *([weight] if rows.wants_grad else [])]
    y = operation(name, [rows, weight, bias], (rows.shape[0], weight.shape[0]), rows.dtype, saves=saves)
    return y.view(*x.shape[:-1], weight.shape[0])


def einsum(equation: str, a: Any, b: Any) -> Any:
    """Two operands, as torch's sumproduct_pair: both are laid out for one batched product."""
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

    def laid(x: Any, names: str, *groups: list[str]) -> Any:
        order = [names.index(each) for group in groups for each in group]
        return x.permute(*order).reshape(*(math.prod(sizes[each] for each in group) for group in groups))

    y = bmm(laid(a, left, shared, only_left, summed), laid(b, right, shared, summed, only_right), "einsum")
    made = [*shared, *only_left, *only_right]
    return y.view(*(sizes[each] for each in made)).permute(*(made.index(each) for each in output))


def solve_triangular(a: Any, b: Any, **_: Any) -> Any:
    *lead, rows, columns = b.shape  # which come out column by column
    strides = (*(step * rows * columns for step in dense(lead)), 1, rows)
    return operation("solve", [a, b], b.shape, b.dtype, saves=[a], saves_result=True, strides=strides)


def conv1d(x: Any, weight: Any, bias: Any = None, *, groups: int = 1) -> Any:
    """x [B, d_in, T] by weight [d_out, d_in / groups, width]."""
    x, weight, bias = _lowered(x, weight, bias)
    shape = (x.shape[0], weight.shape[0], x.shape[2] - weight.shape[2] + 1)
    return operation("conv", [x, weight, bias], shape, x.dtype, saves=[x, weight])


def grouped_linear(x: Any, weight: Any, offsets: Any) -> Any:
    """x [N, d_in], sorted by expert, by weight [E, d_out, d_in]: zoo's own operator, which keeps its inputs."""
    x, weight = _lowered(x, weight)
    shape = (x.shape[0], weight.shape[1])
    return operation("experts", [x, weight], shape, x.dtype, saves=[x, weight, offsets])


def embedding(ids: Any, weight: Any) -> Any:
    return operation("embedding", [weight], (*ids.shape, weight.shape[1]), weight.dtype, saves=[ids])


# ---------------------------------------------------------------- norms and attention: where devices differ


def layer_norm(x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 0.0) -> Any:
    """Keeps its input, and a mean and a deviation a row: in float32, or on a CPU in the weight's dtype or its own."""
    rows = (*x.shape[:-1], 1)
    wide = FLOAT32 if x.is_cuda else (x if weight is None else weight).dtype
    kept = [operation(name, [], rows, wide) for name in ("mean", "rstd")]
    return operation("layer_norm", [x, weight, bias], x.shape, x.dtype, saves=[x, *kept, *_given(weight, bias)])


def rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """Keeps its input and a deviation a row; on a CPU, where it is made of several operations, all in float32, also
    what it is before the weight multiplies it."""
    if x.is_cuda:
        rstd = operation("rstd", [], (*x.shape[:-1], 1), FLOAT32)
        return operation("rms_norm", [x, weight], x.shape, x.dtype, saves=[x, rstd, *_given(weight)])
    wide = x.float()
    y = mul(wide, UNARY["rsqrt"](add(mean(UNARY["square"](wide), -1, True), eps or 0.0)))
    return (y if weight is None else mul(y, weight)).to(x.dtype)


def _given(*tensors: Any) -> list[Any]:
    return [each for each in tensors if each is not None]


def sdpa(q: Any, k: Any, v: Any, mask: Any, causal: bool = False) -> Any:
    """q [B, H, T, C], k [B, K, S, C], v [B, K, S, Cv]: [B, H, T, Cv], laid out as [B, T, H, Cv].

    A fused kernel keeps those, the result and the logarithm of each row's sum. On a CPU there is none for values of
    another width than keys, nor for a bias that learns.
    """
    q, k, v, mask = _lowered(q, k, v, mask)
    fused = q.is_cuda or (q.shape[3] == v.shape[3] and not _grad(mask))
    if not fused:
        with tape().set(autocast=None):
            return _plain_sdpa(q, k, v, mask, causal)
    batch, heads, tokens, _ = q.shape
    width = v.shape[3]
    sums = operation("sdpa_lse", [], (batch, heads, tokens), FLOAT32)
    strides = (tokens * heads * width, width, heads * width, 1)
    saves = [q, k, v, sums, *_given(mask)]
    shape = (batch, heads, tokens, width)
    return operation("sdpa", [q, k, v, mask], shape, q.dtype, saves=saves, saves_result=True, strides=strides)


def fused_attention(q: Any, k: Any, v: Any) -> Any:
    """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv]: [B, T, H, Cv], as flash and flex kernels have it: those
    are kept, the result, and the logarithm of each row's sum."""
    batch, tokens, heads, _ = q.shape
    sums = operation("attention_lse", [], (batch, heads, tokens), FLOAT32)
    shape = (batch, tokens, heads, v.shape[3])
    return operation("attention", [q, k, v], shape, q.dtype, saves=[q, k, v, sums], saves_result=True)


def _plain_sdpa(q: Any, k: Any, v: Any, mask: Any, causal: bool) -> Any:
    """torch's way without a kernel: in float32, a square root of the scale on either side, causal by a drawn mask."""
    dtype = q.dtype
    if k.shape[1] != q.shape[1]:
        k, v = (repeat_interleave(each, q.shape[1] // k.shape[1], 1) for each in (k, v))
    q, k, v = q.float(), k.float(), v.float()
    if causal:
        mask = operation("causal", [], (q.shape[2], k.shape[2]), FLOAT32)
    scores = matmul(mul(q, 1.0), mul(k, 1.0).transpose(-1, -2))
    if mask is not None:
        scores = add(scores, mask)
    return matmul(softmax(scores, -1), v).to(dtype)


# ---------------------------------------------------------------- the loss


def cross_entropy(logits: Any, targets: Any) -> Any:
    """The mean over rows [N, V]: keeps the logarithms of chances, and the targets."""
    chances = operation("log_softmax", [logits], logits.shape, logits.dtype, saves_result=True)
    return operation("cross_entropy", [chances], (), logits.dtype, saves=[chances, targets])


# ---------------------------------------------------------------- by name

METHODS: dict[str, Callable[..., Any]] = {
    **UNARY,
    **{"sum": total, "mean": mean, "logsumexp": logsumexp, "softmax": softmax, "cumsum": cumsum, "cummax": cummax},
    **{"topk": topk, "max": maximum_along, "argsort": argsort, "argmax": argmax, "gather": gather, "scatter": scatter},
    "exponential_": lambda x: x,  # drawn in place, without a gradient
    **{"index_add": index_add, "repeat_interleave": repeat_interleave, "masked_fill": masked_fill},
    **{"maximum": extreme, "minimum": extreme, "logical_not": logical_not, "__invert__": logical_not},
    **{"__neg__": UNARY["neg"], "__abs__": UNARY["abs"], "gt": compared, "lt": compared},
}

OPERATORS: dict[str, Callable[..., Any]] = {
    **{"add": add, "sub": add, "mul": mul, "truediv": div, "pow": power, "matmul": matmul},
    **{name: divide_whole for name in ("floordiv", "mod", "and", "or", "xor")},
}
