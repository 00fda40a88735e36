# shapes here are any
"""torch and torch.nn.functional as a forward pass on shadows finds them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from zoo.costs.shadow import operations as O
from zoo.costs.shadow.tensor import (
    BFLOAT16,
    BOOL,
    FLOAT16,
    FLOAT32,
    INT32,
    INT64,
    Dtype,
    UnknownOperation,
    fresh,
    operation,
    promote,
    tape,
)


class Namespace(SimpleNamespace):
    """Names that are known; another one says what is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnknownOperation(name)


def _made(name: str, shape: Sequence[int], dtype: Dtype) -> Any:
    return fresh(shape, dtype, tape().name(name))


def _shape(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _of_shape(name: str) -> Any:
    return lambda *sizes, dtype=FLOAT32, device=None: _made(name, _shape(sizes), dtype)


def _like(name: str) -> Any:
    return lambda x, *_, dtype=None: _made(name, x.shape, dtype or x.dtype)


def _arange(*bounds: int, dtype: Dtype = INT64, device: Any = None) -> Any:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1) if len(bounds) == 2 else bounds
    return _made("arange", (-(-(stop - start) // step),), dtype)


def _tensor(values: Any, dtype: Dtype = FLOAT32, device: Any = None) -> Any:
    return _made("constant", (len(values),) if isinstance(values, (tuple, list)) else (), dtype)


def _full(shape: Sequence[int], value: Any, dtype: Dtype = FLOAT32, device: Any = None) -> Any:
    return _made("constant", shape, dtype)


def _full_like(x: Any, value: Any, dtype: Dtype | None = None) -> Any:
    return _made("constant", x.shape, dtype or x.dtype)


def _searchsorted(edges: Any, values: Any, right: bool = False) -> Any:
    return operation("searchsorted", [], values.shape, INT64)


def no_grad() -> Any:
    """Nothing inside is kept, and wants a gradient."""
    return tape().set(recording=False)


def _autocast(kind: str, enabled: bool = True) -> Any:
    """As components use it: to turn it off."""
    return tape().set(autocast=tape().autocast if enabled else None)


DTYPES = {"bool": BOOL, "int32": INT32, "int64": INT64, "long": INT64, "float32": FLOAT32, "bfloat16": BFLOAT16}
DTYPES["float16"] = FLOAT16

torch = Namespace(
    **DTYPES,
    **{name: O.UNARY[name] for name in ("tanh", "sigmoid", "expm1", "log", "log1p", "ceil", "exp")},
    **{name: getattr(O, name) for name in ("cat", "stack", "where", "einsum", "baddbmm", "addcmul")},
    **{name: _of_shape(name) for name in ("zeros", "ones", "empty")},
    **{name: _like(name) for name in ("zeros_like", "ones_like", "empty_like", "rand_like")},
    eye=lambda n, dtype=FLOAT32, device=None: _made("eye", (n, n), dtype),
    arange=_arange,
    tensor=_tensor,
    full=_full,
    full_like=_full_like,
    minimum=O.extreme,
    maximum=O.extreme,
    searchsorted=_searchsorted,
    promote_types=promote,
    finfo=lambda dtype: SimpleNamespace(min=-1.0, max=1.0),
    no_grad=no_grad,
    is_grad_enabled=lambda: tape().recording,
    autocast=_autocast,
    is_autocast_enabled=lambda *_: tape().autocast is not None,
    get_autocast_dtype=lambda *_: tape().autocast,
    amp=Namespace(is_autocast_available=lambda *_: True),
    compiler=Namespace(is_compiling=lambda: True),  # so that nothing is kept for another pass
    linalg=Namespace(solve_triangular=O.solve_triangular),
)


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False
) -> Any:
    return O.sdpa(q, k, v, attn_mask)


_ACTIVATIONS = ("gelu", "hardswish", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "softplus")

F = Namespace(
    **{name: O.UNARY[name] for name in _ACTIVATIONS},
    **{name: getattr(O, name) for name in ("layer_norm", "rms_norm", "linear", "pad", "conv1d")},
    embedding=O.embedding,
    scaled_dot_product_attention=_attention,
)
torch.nn = Namespace(functional=F)
