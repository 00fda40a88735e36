# N rows, V vocabulary; otherwise shapes here are any
"""Apply operations along a dimension to shadows: reductions, softmax, sorting, indexing, concatenation, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.costs.shadow.dtypes import INT64, ShadowDtype, promote
from zoo.costs.shadow.strides import broadcast
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.shadow.tensor import Core, Operand, is_shadow, make_result

# ---------------------------------------------------------------- along a dimension

Dims = int | Sequence[int] | None  # None for all


def _reduce_shape(x: Core, dim: Dims, keepdim: bool) -> tuple[int, ...]:
    dims = range(x.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    if is_shadow(dim):
        raise TypeError("a dimension")
    gone = {x.at(each) for each in dims}
    return tuple(1 if at in gone else size for at, size in enumerate(x.shape) if keepdim or at not in gone)


def sum_along(x: Core, dim: Dims = None, keepdim: bool = False) -> Any:
    dtype = x.dtype if x.dtype.is_floating_point else INT64
    return make_result("sum", [x], _reduce_shape(x, dim, keepdim), dtype)


def mean(x: Core, dim: Dims = None, keepdim: bool = False) -> Any:
    return make_result("mean", [x], _reduce_shape(x, dim, keepdim), x.dtype)


def logsumexp(x: Core, dim: Dims, keepdim: bool = False) -> Any:
    return make_result("logsumexp", [x], _reduce_shape(x, dim, keepdim), x.dtype, saves=[x], saves_result=True)


def vector_norm(x: Core, *, dim: Dims, keepdim: bool = False) -> Any:
    """Take the Euclidean norm."""
    return make_result("vector_norm", [x], _reduce_shape(x, dim, keepdim), x.dtype, saves=[x], saves_result=True)


def softmax(x: Core, dim: int, dtype: ShadowDtype | None = None) -> Any:
    return make_result("softmax", [x], x.shape, dtype or x.dtype, saves_result=True)


def cumsum(x: Core, dim: int) -> Any:
    return make_result("cumsum", [x], x.shape, x.dtype if x.dtype.is_floating_point else INT64)


def flip(x: Core, *dims: int) -> Any:
    return make_result("flip", [x], x.shape, x.dtype)


class Pair(tuple):
    """A pair (values, indices), as torch's `topk` and `max` return it."""

    values = property(lambda self: self[0])
    indices = property(lambda self: self[1])


def _pick(name: str, x: Core, shape: tuple[int, ...], saves: Sequence[Any] = ()) -> Pair:
    where_from = make_result("indices", [], shape, INT64)
    return Pair((make_result(name, [x], shape, x.dtype, saves=[*saves, where_from]), where_from))


def topk(x: Core, k: int, dim: int = -1) -> Pair:
    return _pick("topk", x, (*x.shape[: x.at(dim)], k, *x.shape[x.at(dim) + 1 :]))


def maximum_along(x: Core, dim: int, keepdim: bool = False) -> Pair:
    return _pick("max", x, _reduce_shape(x, dim, keepdim))


def cummax(x: Core, dim: int) -> Pair:
    return _pick("cummax", x, x.shape, [x])


def argsort(x: Core, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    return make_result("argsort", [], x.shape, INT64)


def argmax(x: Core, dim: int, keepdim: bool = False) -> Any:
    return make_result("argmax", [], _reduce_shape(x, dim, keepdim), INT64)


# ---------------------------------------------------------------- picking and placing


def gather(x: Core, dim: int, places: Core) -> Any:
    return make_result("gather", [x], places.shape, x.dtype, saves=[x, places])


def pick_last(x: Core, places: Core) -> Any:
    """Apply `zoo.kernels.score_bias.pick_last`, which saves only the indices."""
    return make_result("gather", [x], places.shape, x.dtype, saves=[places])


def scatter_reduce(x: Core, dim: int, places: Core, source: Core, reduce: str) -> Any:
    saves = [x, places, source]
    return make_result("scatter_reduce", [x, source], x.shape, x.dtype, saves=saves, saves_result=True)


def scatter(x: Core, dim: int, places: Core, value: Operand) -> Any:
    return make_result("scatter", [x, value], x.shape, x.dtype, saves=[places])


def pick_at(x: Core, picks: Sequence[tuple[int, Any]]) -> Any:
    """Index x with tensors along adjacent dimensions."""
    first, last = picks[0][0], picks[-1][0]
    picked = broadcast(*(each.shape for _, each in picks))
    shape = (*x.shape[:first], *picked, *x.shape[last + 1 :])
    return make_result("index", [x], shape, x.dtype, saves=[each for _, each in picks])


def index_add(x: Core, dim: int, places: Core, source: Core) -> Any:
    return make_result(
        "index_add", [x, source], x.shape, x.dtype, saves=[places, *([source] if source.wants_grad else [])]
    )


def repeat_interleave(x: Core, times: int, dim: int | None = None) -> Any:
    if is_shadow(times):
        raise UnknownOperation("repeat_interleave(tensor)")
    if dim is None:
        return repeat_interleave(x.flatten(), times, 0)
    at = x.at(dim)
    return make_result("repeat", [x], (*x.shape[:at], x.shape[at] * times, *x.shape[at + 1 :]), x.dtype)


def pad(x: Core, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant":
        raise UnknownOperation(f"pad, mode {mode}")
    shape = list(x.shape)
    for place, (low, high) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        shape[-1 - place] += low + high
    return make_result("pad", [x], shape, x.dtype)


def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    at = tensors[0].at(dim)
    shape = list(tensors[0].shape)
    shape[at] = sum(each.shape[at] for each in tensors)
    return make_result("cat", tensors, shape, promote(*(each.dtype for each in tensors)))


def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    at = dim % (tensors[0].ndim + 1)
    shape = (*tensors[0].shape[:at], len(tensors), *tensors[0].shape[at:])
    return make_result("stack", tensors, shape, promote(*(each.dtype for each in tensors)))


# ---------------------------------------------------------------- the loss


def cross_entropy(logits: Core, targets: Core) -> Any:
    """Compute the mean cross-entropy of logits [N, V]. It saves the log-probabilities and the targets."""
    probs = make_result("log_softmax", [logits], logits.shape, logits.dtype, saves_result=True)
    return make_result("cross_entropy", [probs], (), logits.dtype, saves=[probs, targets])
