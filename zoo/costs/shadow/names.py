# shapes here are any
"""Stand in for torch and torch.nn.functional in a forward pass on shadows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from zoo.costs.shadow.dtypes import BFLOAT16, BOOL, FLOAT8, FLOAT16, FLOAT32, INT32, INT64, ShadowDtype, promote
from zoo.costs.shadow.elementwise import UNARY, infer_dtype, refuse_others
from zoo.costs.shadow.norms import attend_torch
from zoo.costs.shadow.operations import FUNCTIONAL, TORCH
from zoo.costs.shadow.products import solve_triangular
from zoo.costs.shadow.reductions import vector_norm
from zoo.costs.shadow.strides import flat_sizes
from zoo.costs.shadow.tape import UnknownOperation, current_tape
from zoo.costs.shadow.tensor import make_result, make_shadow


class ShadowNamespace(SimpleNamespace):
    """The torch names that a pass may use; any other name raises UnknownOperation."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnknownOperation(name)


class Refused:
    """A torch name that a pass may not use. It raises UnknownOperation when it is called, compared, used in
    `isinstance` or asked for an attribute."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UnknownOperation(self._name)

    __call__ = __instancecheck__ = __subclasscheck__ = __eq__ = __hash__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnknownOperation(f"{self._name}.{name}")


def _made(name: str, shape: Sequence[int], dtype: ShadowDtype) -> Any:
    return make_shadow(shape, dtype, current_tape().name(name))


def _of_shape(name: str) -> Any:
    return lambda *sizes, dtype=FLOAT32, device=None: _made(name, flat_sizes(sizes), dtype or FLOAT32)


def _like(name: str) -> Any:
    return lambda x, *, dtype=None, device=None: _made(name, x.shape, dtype or x.dtype)


def _arange(*bounds: float, dtype: ShadowDtype | None = None, device: object = None) -> Any:
    start, stop, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1) if len(bounds) == 2 else bounds
    size: Any = -(-(stop - start) // step)  # not math.ceil, which would lose the formula of a Traced (`--explain`)
    size = math.ceil(size) if isinstance(size, float) else size
    return _made("arange", (size,), dtype or infer_dtype(start, stop, step))


def _tensor(values: object, *, dtype: ShadowDtype | None = None, device: object = None) -> Any:
    shape, inner = [], values
    while isinstance(inner, tuple | list):
        shape.append(len(inner))
        inner = inner[0] if inner else 0.0
    return _made("constant", shape, dtype or infer_dtype(*_numbers(values)))


def _numbers(values: object) -> list[Any]:
    return [each for value in values for each in _numbers(value)] if isinstance(values, tuple | list) else [values]


def no_grad() -> Any:
    """Save nothing inside the block; its results require no gradient."""
    return current_tape().set(recording=False)


DTYPES = {each.name: each for each in (BOOL, INT32, INT64, FLOAT32, BFLOAT16, FLOAT16, FLOAT8)} | {"long": INT64}

FINFO = {
    "float32": SimpleNamespace(min=-3.4028234663852886e38, max=3.4028234663852886e38, eps=2.0**-23, tiny=2.0**-126),
    "bfloat16": SimpleNamespace(min=-3.3895313892515355e38, max=3.3895313892515355e38, eps=2.0**-7, tiny=2.0**-126),
    "float16": SimpleNamespace(min=-65504.0, max=65504.0, eps=2.0**-10, tiny=2.0**-14),
}
"""The limits of float dtypes, as torch.finfo has them."""

torch = ShadowNamespace(
    **DTYPES,
    **UNARY,
    **{name: refuse_others(name, run) for name, run in TORCH.items()},
    **{name: refuse_others(name, _of_shape(name)) for name in ("zeros", "ones", "empty", "rand")},
    **{name: refuse_others(name, _like(name)) for name in ("zeros_like", "ones_like", "empty_like")},
    eye=refuse_others("eye", lambda n, *, dtype=FLOAT32, device=None: _made("eye", (n, n), dtype)),
    arange=refuse_others("arange", _arange),
    tensor=refuse_others("tensor", _tensor),
    full=refuse_others(
        "full",
        lambda size, fill_value, *, dtype=None, device=None: _made("constant", size, dtype or infer_dtype(fill_value)),
    ),
    full_like=refuse_others("full_like", lambda x, fill_value, **how: _like("constant")(x, **how)),
    searchsorted=refuse_others(
        "searchsorted", lambda edges, values, *, right=False: make_result("searchsorted", [], values.shape, INT64)
    ),
    promote_types=promote,
    finfo=lambda dtype: FINFO[dtype.name],
    no_grad=no_grad,
    is_grad_enabled=lambda: current_tape().recording,
    autocast=lambda kind, enabled=True: current_tape().set(autocast=current_tape().autocast if enabled else None),
    is_autocast_enabled=lambda *_: current_tape().autocast is not None,
    get_autocast_dtype=lambda *_: current_tape().autocast,
    amp=ShadowNamespace(is_autocast_available=lambda *_: True),
    compiler=ShadowNamespace(is_compiling=lambda: True),  # then components cache nothing for another pass
    linalg=ShadowNamespace(solve_triangular=solve_triangular, vector_norm=refuse_others("vector_norm", vector_norm)),
)


_ACTIVATIONS = ("gelu", "hardswish", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "softplus")

F = ShadowNamespace(
    **{name: UNARY[name] for name in _ACTIVATIONS},
    **{name: refuse_others(name, run) for name, run in FUNCTIONAL.items()},
    scaled_dot_product_attention=refuse_others("scaled_dot_product_attention", attend_torch),
)
torch.nn = ShadowNamespace(functional=F)


def find_name(path: str) -> Any:
    """Find the stand-in for a dotted path below torch, such as "nn.functional"; a Refused if there is none."""
    found: Any = torch
    for name in filter(None, path.split(".")):
        found = vars(found).get(name) if isinstance(found, ShadowNamespace) else None
        if found is None:
            return Refused(path)
    return found
