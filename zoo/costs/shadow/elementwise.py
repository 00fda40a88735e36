# shapes here are any
"""Apply elementwise operations to shadows: of one tensor, and of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zoo.costs.shadow.dtypes import BOOL, FLOAT32, INT64, ShadowDtype, promote
from zoo.costs.shadow.strides import broadcast, elementwise_strides
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.shadow.tensor import Core, Operand, is_shadow, make_result, save_operands, wants_gradient

# ---------------------------------------------------------------- elementwise, of one tensor

KEEPS_INPUT = (
    *("abs", "clamp", "cos", "erf", "gelu", "hardswish", "leaky_relu", "log", "log1p", "mish", "relu6", "silu", "sin"),
    *("softplus", "square"),
)
KEEPS_RESULT = ("exp", "expm1", "relu", "rsqrt", "sigmoid", "sqrt", "tanh")
KEEPS_NOTHING = ("ceil", "floor", "frac", "neg", "sign", "tril")

OPTIONS = {
    **{"clamp": ("min", "max"), "gelu": ("approximate",), "leaky_relu": ("negative_slope",)},
    **{"softplus": ("beta", "threshold"), "tril": ("diagonal",)},
}
"""Further arguments that an operation accepts. None of them changes the tensors saved."""

OF_INTEGERS = ("abs", "clamp", "relu", "relu6", "square")
"""Operations that save a tensor and map integers to integers. All others that save a tensor map integers to floats."""


def refuse_others(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an operation so that it raises UnknownOperation for arguments it does not accept. `input` names the first
    tensor, as in torch; `inplace=False` and `out=None` are ignored."""

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


def _make_unary(name: str, keeps: str) -> Callable[..., Any]:
    known = OPTIONS.get(name, ())

    def run(x: Core, *given: Any, **options: Any) -> Any:
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
        return make_result(name, [x], x.shape, dtype, saves=saves, saves_result=keeps == "result", strides=strides)

    return run


UNARY = {
    name: refuse_others(name, _make_unary(name, keeps))
    for keeps, names in (("input", KEEPS_INPUT), ("result", KEEPS_RESULT), ("nothing", KEEPS_NOTHING))
    for name in names
}


# ---------------------------------------------------------------- elementwise, of several


def _combine(
    name: str,
    operands: Sequence[Any],
    saves: Sequence[Any] = (),
    dtype: ShadowDtype | None = None,
    saves_result: bool = False,
) -> Any:
    """Make the result of an elementwise operation, with torch's broadcasting and type promotion."""
    tensors = [each for each in operands if is_shadow(each)]
    if strange := [each for each in operands if not is_shadow(each) and not isinstance(each, int | float)]:
        raise TypeError(f"{name} of a tensor and a {type(strange[0]).__name__}")
    shape = broadcast(*(each.shape for each in tensors))
    kept = [each for each in saves if is_shadow(each)]
    strides = elementwise_strides(shape, tensors)
    dtype = dtype or _promote_operands(operands)
    return make_result(name, tensors, shape, dtype, saves=kept, saves_result=saves_result, strides=strides)


def _promote_operands(operands: Sequence[Any]) -> ShadowDtype:
    """Promote operands as torch does. Tensors with dimensions decide first. A tensor without dimensions, and last a
    Python number, changes the dtype only if its own dtype is of a higher rank (bool, integer, float)."""
    tensors = [each for each in operands if is_shadow(each)]
    levels = (
        [each.dtype for each in tensors if each.shape],
        [each.dtype for each in tensors if not each.shape],
        [infer_dtype(each) for each in operands if not is_shadow(each)],
    )
    found = None
    for dtypes in levels:
        higher = [dtype for dtype in dtypes if found is None or dtype.rank > found.rank]
        found = promote(*higher) if higher else found
    assert found is not None
    return found


def infer_dtype(*numbers: Any) -> ShadowDtype:
    """Give the dtype that torch infers for a tensor of these numbers, and by which it promotes a Python number."""
    if not all(isinstance(each, int | float) for each in numbers):
        raise TypeError("numbers")
    if any(isinstance(each, float) for each in numbers) or not numbers:
        return FLOAT32
    return BOOL if all(isinstance(each, bool) for each in numbers) else INT64


def add(a: Any, b: Any) -> Any:
    return _combine("add", (a, b))


def multiply(a: Any, b: Any) -> Any:
    return _note_factor(_combine("mul", (a, b), save_operands(a, b)), b if is_shadow(a) else a)


def _note_factor(result: Any, factor: Any) -> Any:
    """Record a numeric `factor` in the operation that made `result`; do nothing for a tensor."""
    if not is_shadow(factor) and result.node is not None:
        result.node.factor = float(factor)
    return result


def divide(a: Any, b: Any) -> Any:
    if _promote_operands((a, b)).rank < 2:
        return _combine("div", (a, b), dtype=FLOAT32)
    if not is_shadow(a) and is_shadow(b):  # torch divides a number by a tensor as reciprocal (saved) times number
        inverse = make_result("reciprocal", [b], b.shape, b.dtype, saves_result=True)
        return multiply(inverse, a)
    result = _combine("div", (a, b), [b, *([a] if wants_gradient(b) else [])])
    return result if is_shadow(b) else _note_factor(result, 1 / b)


def power(a: Operand, b: Operand) -> Any:
    return _combine("pow", (a, b), [a, b], saves_result=wants_gradient(b))


def hypot(a: Operand, b: Operand) -> Any:
    return _combine("hypot", (a, b), [a, b], saves_result=True)


def logaddexp(a: Operand, b: Operand) -> Any:
    return _combine("logaddexp", (a, b), [a, b])


def divide_whole(a: Operand, b: Operand) -> Any:
    """Apply `//`, `%` or a logical operator. Raises UnknownOperation if an operand requires a gradient."""
    if wants_gradient(a) or wants_gradient(b):
        raise UnknownOperation("// or %")
    return _combine("whole", (a, b))


def compare(a: Operand, b: Operand) -> Any:
    return _combine("compare", (a, b), dtype=BOOL)


def pick_extreme(a: Operand, b: Operand) -> Any:
    """Take the elementwise maximum or minimum of two tensors. Both are saved, to route the gradient."""
    if not (is_shadow(a) and is_shadow(b)):
        raise TypeError("the larger or smaller of two tensors")
    return _combine("extreme", (a, b), (a, b))


def where(condition: Core, a: Operand, b: Operand) -> Any:
    shape = broadcast(condition.shape, *(each.shape for each in (a, b) if is_shadow(each)))
    return make_result("where", [a, b], shape, _promote_operands((a, b)), saves=[condition])


def masked_fill(x: Core, mask: Core, value: float) -> Any:
    if is_shadow(value):
        raise TypeError("a number to fill with")
    shape = broadcast(x.shape, mask.shape)
    return make_result("masked_fill", [x], shape, x.dtype, saves=[mask], strides=elementwise_strides(shape, [x]))


def addcmul(x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return _combine("addcmul", (x, a, b), save_operands(a, b))


def logical_not(x: Core) -> Any:
    return make_result("not", [], x.shape, BOOL)
