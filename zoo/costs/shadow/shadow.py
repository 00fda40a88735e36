# shapes here are any
"""The tensor methods of a shadow: views, and methods that call an operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from zoo.costs.shadow.dtypes import BOOL, FLOAT32, INT32, INT64, ShadowDtype
from zoo.costs.shadow.elementwise import refuse_others
from zoo.costs.shadow.operations import COMPARISONS, METHODS, OPERATORS
from zoo.costs.shadow.reductions import pick_at
from zoo.costs.shadow.strides import (
    broadcast,
    broadcast_strides,
    elementwise_strides,
    flat_sizes,
    sizes_of,
    view_strides,
)
from zoo.costs.shadow.tape import NEEDS_VALUES, WRITES, ShadowDevice, UnknownOperation, current_tape
from zoo.costs.shadow.tensor import Core, is_shadow, make_result, make_shadow


class Shadow(Core):
    """A tensor without values."""

    __slots__ = ()

    # ------------------------------------------------------------ views

    def view(self, *shape: Any) -> Any:
        wanted = sizes_of(flat_sizes(shape), self.numel())
        strides = view_strides(self.shape, self.strides, wanted)
        if strides is None:
            raise ValueError(f"a view of {self.shape} with strides {self.strides} as {wanted} would copy")
        return self.as_view(wanted, strides)

    def reshape(self, *shape: Any) -> Any:
        wanted = sizes_of(flat_sizes(shape), self.numel())
        strides = view_strides(self.shape, self.strides, wanted)
        return make_result("copy", [self], wanted, self.dtype) if strides is None else self.as_view(wanted, strides)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        start, end = self.at(start_dim), self.at(end_dim)
        return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Any:
        dim = self.at(dim)
        return self.view(*self.shape[:dim], *sizes_of(sizes, self.shape[dim]), *self.shape[dim + 1 :])

    def permute(self, *dims: Any) -> Any:
        order = [self.at(dim) for dim in flat_sizes(dims)]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"dimensions {order} of a tensor of {self.ndim}")
        return self.as_view([self.shape[dim] for dim in order], [self.strides[dim] for dim in order])

    def transpose(self, dim0: int, dim1: int) -> Any:
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(*order)

    def t(self) -> Any:
        return self.transpose(0, 1)

    @property
    def mT(self) -> Any:  # torch's name
        return self.transpose(-1, -2)

    def expand(self, *shape: Any) -> Any:
        asked = flat_sizes(shape)
        lead = len(asked) - self.ndim
        wanted = tuple(self.shape[dim - lead] if size == -1 else size for dim, size in enumerate(asked))
        if broadcast(self.shape, wanted) != wanted:
            raise ValueError(f"a tensor of shape {self.shape} expanded to {wanted}")
        return self.as_view(wanted, broadcast_strides(self.strides, self.shape, wanted))

    def expand_as(self, other: Core) -> Any:
        return self.expand(*other.shape)

    def unsqueeze(self, dim: int) -> Any:
        if not -self.ndim - 1 <= dim <= self.ndim:
            raise IndexError(f"dimension {dim} of a tensor of shape {self.shape}")
        dim %= self.ndim + 1
        step = self.strides[dim] * self.shape[dim] if dim < self.ndim else 1
        return self.as_view((*self.shape[:dim], 1, *self.shape[dim:]), (*self.strides[:dim], step, *self.strides[dim:]))

    def squeeze(self, dim: int) -> Any:
        return self.select(dim, 0) if self.shape[dim] == 1 else self

    def select(self, dim: int, index: int) -> Any:
        dim = self.at(dim)
        if not -self.shape[dim] <= index < self.shape[dim]:
            raise IndexError(f"index {index} of {self.shape[dim]}")
        return self.as_view(
            (*self.shape[:dim], *self.shape[dim + 1 :]), (*self.strides[:dim], *self.strides[dim + 1 :])
        )

    def unbind(self, dim: int = 0) -> tuple[Any, ...]:
        if not self.shape[dim]:
            return ()
        view = self.select(dim, 0)  # copied for the other indices, which is faster: there may be one for each layer
        like = (view.shape, view.strides, view.dtype, view.storage, view.wants_grad, view.node)
        return (view, *(type(view)(*like) for _ in range(1, self.shape[dim])))

    def split(self, split_size: Any, dim: int = 0) -> tuple[Any, ...]:
        size, dim, whole = split_size, self.at(dim), self.shape[dim]
        sizes = size if isinstance(size, (tuple, list)) else [min(size, whole - at) for at in range(0, whole, size)]
        if sum(sizes) != whole:
            raise ValueError(f"{whole} split into {sizes}")
        return tuple(self.as_view((*self.shape[:dim], each, *self.shape[dim + 1 :]), self.strides) for each in sizes)

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Any, ...]:
        return self.split(-(-self.shape[dim] // chunks), dim)

    def unfold(self, dimension: int, size: int, step: int) -> Any:
        dim = self.at(dimension)
        count = (self.shape[dim] - size) // step + 1
        strides = (*self.strides[:dim], self.strides[dim] * step, *self.strides[dim + 1 :], self.strides[dim])
        return self.as_view((*self.shape[:dim], count, *self.shape[dim + 1 :], size), strides)

    def detach(self) -> Any:
        seen = self.as_view(self.shape, self.strides)
        seen.wants_grad, seen.node = False, None
        return seen

    def contiguous(self) -> Any:
        return self if self.is_contiguous() else make_result("copy", [self], self.shape, self.dtype)

    def __getitem__(self, index: Any) -> Any:
        items: Any = index if isinstance(index, tuple) else (index,)
        at = next((place for place, item in enumerate(items) if item is ...), None)
        if at is not None:
            given = sum(item is not None and item is not ... for item in items)
            items = (*items[:at], *[slice(None)] * (self.ndim - given), *items[at + 1 :])
        seen, dim, picks = self, 0, []
        for item in items:
            if isinstance(item, bool) or (is_shadow(item) and item.dtype is BOOL):
                raise UnknownOperation("tensor[mask]", NEEDS_VALUES)
            if item is None:
                seen, dim = seen.unsqueeze(dim), dim + 1
            elif isinstance(item, int):
                seen = seen.select(dim, item)
            elif is_shadow(item):
                picks.append((dim, item))
                dim += 1
            elif not isinstance(item, slice):
                raise UnknownOperation(f"tensor[{type(item).__name__}]")
            else:
                seen, dim = seen._sliced(dim, item), dim + 1
        if picks and picks[-1][0] - picks[0][0] >= len(picks):
            raise UnknownOperation("tensor[index, :, index]")
        return pick_at(seen, picks) if picks else seen

    def _sliced(self, dim: int, item: slice) -> Any:
        start, stop, step = item.indices(self.shape[self.at(dim)])
        if step < 1:
            raise ValueError(f"a slice with step {step}")
        shape = (*self.shape[:dim], max(0, -(-(stop - start) // step)), *self.shape[dim + 1 :])
        return self.as_view(shape, (*self.strides[:dim], self.strides[dim] * step, *self.strides[dim + 1 :]))

    # ------------------------------------------------------------ dtypes

    def to(self, target: object) -> Any:
        if not (isinstance(target, ShadowDtype | ShadowDevice | str) or is_shadow(target)):
            raise UnknownOperation(f"to({type(target).__name__})")
        dtype = target if isinstance(target, ShadowDtype) else target.dtype if is_shadow(target) else self.dtype
        if dtype is self.dtype:
            return self
        strides = elementwise_strides(self.shape, [self])
        return make_result("cast", [self], self.shape, dtype, strides=strides)

    def float(self) -> Any:
        return self.to(FLOAT32)

    def long(self) -> Any:
        return self.to(INT64)

    def int(self) -> Any:
        return self.to(INT32)

    def bool(self) -> Any:
        return self.to(BOOL)

    def new_zeros(self, *shape: Any, dtype: ShadowDtype | None = None) -> Any:
        return make_shadow(flat_sizes(shape), dtype or self.dtype, current_tape().name("zeros"))

    new_ones = new_empty = new_zeros

    def new_tensor(self, value: float) -> Any:
        if not isinstance(value, int | float):
            raise UnknownOperation(f"new_tensor({type(value).__name__})")
        return make_shadow((), self.dtype, current_tape().name("constant"))

    def copy_(self, source: object) -> Any:
        if not self.storage.held or current_tape().recording:
            raise UnknownOperation("copy_", WRITES)
        return self

    # ------------------------------------------------------------ Python's protocols

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __pos__(self) -> Any:
        return self


def _method(name: str, run: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    run = refuse_others(name, run)
    if swapped:
        return lambda self, other: run(other, self)
    return lambda self, *args, **options: run(self, *args, **options)


def _refusal(name: str, why: str) -> Callable[..., Any]:
    def refuse(self: Any, *_: Any, **__: Any) -> Any:
        raise UnknownOperation(name, why)

    return refuse


for _name, _run in METHODS.items():
    setattr(Shadow, _name, _method(_name, _run))
for _name, _run in OPERATORS.items():
    setattr(Shadow, f"__{_name}__", _method(_name, _run))
    setattr(Shadow, f"__r{_name}__", _method(_name, _run, swapped=True))
for _name, _run in COMPARISONS.items():
    setattr(Shadow, f"__{_name}__", _method(_name, _run))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(Shadow, f"__i{_name}__", _refusal(f"__i{_name}__", WRITES))
for _name in ("__setitem__", "__delitem__"):
    setattr(Shadow, _name, _refusal(_name, WRITES))
for _name in (
    *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__trunc__", "__floor__"),
    *("__ceil__", "__array__", "__contains__", "__format__", "__divmod__", "__reversed__", "__deepcopy__", "__copy__"),
    *("item", "tolist", "numpy", "nonzero", "equal", "allclose", "unique", "bincount"),
):
    setattr(Shadow, _name, _refusal(_name, NEEDS_VALUES))
Shadow.__hash__ = object.__hash__  # type: ignore[method-assign]
