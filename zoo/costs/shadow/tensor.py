# B batch, T tokens, S keys: shapes here are any
"""Shadows: tensors with a shape, strides and a dtype but no values. Operations on them record what autograd saves.

`make_result` makes every result: it takes the tensors that torch saves for the backward pass of the operation (torch's
derivatives.yaml), and the tape keeps their storages, each once. Views share a storage. Strides are followed because
they decide whether a reshape copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeGuard

from zoo.costs.shadow.dtypes import ShadowDtype
from zoo.costs.shadow.strides import Shape, dense_strides
from zoo.costs.shadow.tape import GradientTarget, ShadowDevice, Storage, TapeNode, UnknownOperation, current_tape


class Core:
    """A shadow's state. `wants_grad` is torch's `requires_grad`."""

    __slots__ = ("dtype", "node", "shape", "storage", "strides", "wants_grad")
    made_as: ClassVar[type[Core]]  # the subclass with torch's methods (Shadow), which imports this file

    def __init_subclass__(cls) -> None:
        Core.made_as = cls

    def __init__(
        self,
        shape: Shape,
        strides: Shape,
        dtype: ShadowDtype,
        storage: Storage,
        grad: bool,
        node: TapeNode | None = None,
    ) -> None:
        self.shape, self.strides, self.dtype, self.storage = shape, strides, dtype, storage
        self.wants_grad, self.node = grad, node

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in Core.__slots__:
            raise AttributeError(name)
        raise UnknownOperation(name)

    @property
    def device(self) -> ShadowDevice:
        return current_tape().device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def requires_grad(self) -> bool:
        return self.wants_grad

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize

    def element_size(self) -> int:
        return self.dtype.itemsize

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def is_contiguous(self) -> bool:
        wanted = dense_strides(self.shape)
        return all(a == b or size == 1 for a, b, size in zip(self.strides, wanted, self.shape, strict=True))

    def at(self, dim: int) -> int:
        """Convert a negative dimension to a positive one. Raises IndexError for one out of range."""
        if not -len(self.shape) <= dim < len(self.shape):
            raise IndexError(f"dimension {dim} of a tensor of shape {self.shape}")
        return dim % len(self.shape)

    def as_view(self, shape: Iterable[int], strides: Iterable[int]) -> Any:
        """Return a view: other shape and strides, the same memory."""
        grad = self.wants_grad and current_tape().recording
        return type(self)(tuple(shape), tuple(strides), self.dtype, self.storage, grad, self.node if grad else None)


Operand = Core | float  # what torch's elementwise operations take


# ---------------------------------------------------------------- making them


def make_shadow(
    shape: Sequence[int],
    dtype: ShadowDtype,
    name: str = "",
    *,
    grad: bool = False,
    strides: Shape | None = None,
    held: bool = False,
) -> Any:
    """Make a tensor with new memory. `held` is true for a weight, a buffer or a cache."""
    shape = tuple(shape)
    storage = Storage(name, shape, dtype, held=held)
    return Core.made_as(shape, dense_strides(shape) if strides is None else strides, dtype, storage, grad)


def make_result(
    name: str,
    inputs: Iterable[Any],
    shape: Sequence[int],
    dtype: ShadowDtype,
    *,
    saves: Iterable[Any] = (),
    saves_result: bool = False,
    strides: Shape | None = None,
) -> Any:
    """Make the result of an operation on `inputs`. Autograd saves `saves` if an input requires a gradient."""
    moment = current_tape()
    moment.operations += 1
    read = [each for each in inputs if is_shadow(each)]
    moment.elements[moment.section, name] += max(map(math.prod, (shape, *(each.shape for each in read))))
    given = [each for each in read if each.wants_grad]
    wanted = moment.recording and dtype.is_floating_point and bool(given)
    result = make_shadow(shape, dtype, moment.name(name), grad=wanted, strides=strides)
    if wanted:
        record_node(result, name, given, [*saves, *([result] if saves_result else ())])
    return result


def record_node(result: Core, name: str, inputs: Iterable[Any], saves: Iterable[Any], work: int = 0) -> None:
    """Record the operation that made `result`: its inputs, the tensors it saves, and the `work` bytes that its backward
    pass takes in addition."""
    saved = [each.storage for each in saves if not each.storage.held]
    sources = [source_of(each) for each in inputs]
    tape = current_tape()
    result.node = TapeNode(name, tuple(tape.path), tape.operations, saved, sources, result.nbytes, work)


def source_of(tensor: Core) -> GradientTarget:
    """Return the target of a tensor's gradient. A target keeps the storage of a leaf alive, but not of other
    tensors."""
    return GradientTarget(tensor.node, None if tensor.node else tensor.storage, tensor.nbytes)


def find_reached(roots: Iterable[Any], since: int = 0) -> list[TapeNode]:
    """Find the operations after number `since` that a backward pass from `roots` goes through, first to last.

    Operations that no root depends on are left out: torch frees them with their results.
    """
    waiting = [each.node for each in roots if is_shadow(each) and each.node]
    found: dict[int, TapeNode] = {}
    while waiting:
        node = waiting.pop()
        if node.index > since and node.index not in found:
            found[node.index] = node
            waiting += [source.node for source in node.sources if source.node]
    return [found[index] for index in sorted(found)]


def collect_saved(nodes: Iterable[TapeNode]) -> dict[Storage, None]:
    """Collect the storages that operations save, each once, in the order of the operations."""
    return {storage: None for node in nodes for storage in node.saves}


def is_shadow(value: object) -> TypeGuard[Core]:
    return isinstance(value, Core)


def wants_gradient(value: Any) -> bool:
    return is_shadow(value) and value.wants_grad


def save_operands(a: Any, b: Any) -> list[Any]:
    """List the operands that a product of a and b saves: a if b requires a gradient, b if a does."""
    return [operand for operand, other in ((a, b), (b, a)) if wants_gradient(other)]
