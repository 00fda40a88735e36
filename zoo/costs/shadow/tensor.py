# B batch, T tokens, S keys: shapes here are any
"""Shadows: tensors with a shape and a dtype but no values. Operations on them note what autograd saves.

`operation` is the one place where a result is made: it says which tensors torch saves for the backward pass of that
operation (torch's derivatives.yaml), and the tape keeps their storages, each once, as torch's memory does. Views share
a storage. Strides are followed, for it is they that say whether a reshape copies.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

from zoo.errors import ZooError

Shape = tuple[int, ...]


class UnknownOperation(ZooError):
    """A forward pass uses something that a shadow cannot follow: by default a torch operation whose saved tensors are
    not listed in operations.py. Once raised, the pass has no figures, even if the component catches it."""

    def __init__(self, name: str, why: str = "is a torch operation whose saved tensors are not listed") -> None:
        would = "a line in zoo/costs/shadow/operations.py would do"
        super().__init__(f"memory: '{name}' {why} ({would})")
        running = _TAPE.get(None)
        if running is not None and running.unknown is None:
            running.unknown = self


NEEDS_VALUES = "needs a tensor's values, and counting has none"
WRITES = "writes into a tensor, and counting follows new tensors only"
FAILED = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)
"""What Python and torch raise where a shadow does not answer as a tensor would, or shapes do not fit."""


@contextmanager
def named_failures(component: str) -> Iterator[None]:
    """Raises UnknownOperation with a component's name for a failure inside its forward pass."""
    try:
        yield
    except FAILED as error:
        own = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != __file__]
        place = f"{own[-1].name}, {os.path.basename(own[-1].filename)} line {own[-1].lineno}" if own else component
        what = str(error).partition("\n")[0]
        why = f"failed on shapes without values in {place}: {type(error).__name__}: {what}"
        raise UnknownOperation(component, why) from error


class ShadowDtype:
    """A dtype of torch's: `rank` is 0 for bool, 1 for integers, 2 for floats (a higher one wins a promotion)."""

    def __init__(self, name: str, itemsize: int, rank: int) -> None:
        self.name, self.itemsize, self.rank = name, itemsize, rank

    def __str__(self) -> str:
        return f"torch.{self.name}"

    @property
    def is_floating_point(self) -> bool:
        return self.rank == 2


BOOL, INT32, INT64 = ShadowDtype("bool", 1, 0), ShadowDtype("int32", 4, 1), ShadowDtype("int64", 8, 1)
FLOAT8 = ShadowDtype("float8_e4m3fn", 1, 2)
BFLOAT16, FLOAT16, FLOAT32 = ShadowDtype("bfloat16", 2, 2), ShadowDtype("float16", 2, 2), ShadowDtype("float32", 4, 2)


def promote(*dtypes: ShadowDtype) -> ShadowDtype:
    """The dtype that holds values of all: the highest rank, there the widest; two halves of 16 bits meet in float32."""
    rank = max(dtype.rank for dtype in dtypes)
    top = [dtype for dtype in dtypes if dtype.rank == rank]
    widest = max(top, key=lambda dtype: dtype.itemsize)
    return FLOAT32 if {BFLOAT16, FLOAT16} <= set(top) and widest.itemsize == 2 else widest


class ShadowDevice:
    """Where the pass would run: "cuda" has fused norms and attention, "cpu" composes some of them."""

    def __init__(self, kind: str) -> None:
        self.type = kind


class Storage:
    """The memory that a tensor shares with its views. The tape counts the bytes that are alive at once, without those
    that are `held`: weights, buffers, a cache."""

    __slots__ = ("_tape", "dtype", "held", "name", "nbytes", "shape")

    def __init__(self, name: str, shape: Shape, dtype: ShadowDtype, *, held: bool = False) -> None:
        self.name, self.shape, self.dtype, self.held = name, shape, dtype, held
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._tape = tape()
        self._tape.count(0 if held else self.nbytes)

    def hold(self) -> None:
        """Stop counting it: from now on it belongs to the model or its cache."""
        if not self.held:
            self.held = True
            self._tape.count(-self.nbytes)

    def __del__(self) -> None:
        self._tape.count(0 if self.held else -self.nbytes)


class GradientTarget(NamedTuple):
    """An input that requires a gradient: the operation that made it, or a leaf's memory, and its bytes."""

    node: Node | None
    leaf: Storage | None
    nbytes: int


class Node:
    """An operation that the backward pass will undo. It `saves` memory until then, and takes `work` bytes besides."""

    __slots__ = ("index", "name", "nbytes", "saves", "sources", "work")

    def __init__(
        self, name: str, index: int, saves: list[Storage], sources: list[GradientTarget], nbytes: int, work: int
    ) -> None:
        self.name, self.index, self.saves, self.sources = name, index, saves, sources
        self.nbytes, self.work = nbytes, work


class Tape:
    """One pass: how many operations there were, the `path` of the part that is at work, the bytes that are `live` and
    the `most` that were. A `selective` one keeps nothing of attention's inside, to compute it a second time;
    `autocast` is the dtype that products take, if any, `unknown` the first operation that could not be followed."""

    def __init__(
        self,
        device: ShadowDevice,
        selective: bool,
        autocast: ShadowDtype | None,
        training: bool = True,
        recording: bool = True,
    ) -> None:
        self.device, self.selective, self.autocast = device, selective, autocast
        self.training, self.recording = training, recording
        self.path: list[str] = []
        self.unknown: UnknownOperation | None = None
        self.operations = self.live = self.most = 0

    def count(self, nbytes: int) -> None:
        """Add to the live bytes; a negative number frees some."""
        self.live += nbytes
        self.most = max(self.most, self.live)

    def begin(self) -> tuple[int, int]:
        """Reset `most` to the live bytes; return the number of operations so far, and the live bytes."""
        self.most = self.live
        return self.operations, self.live

    def name(self, operation: str) -> str:
        return f"{'.'.join(self.path)}/{operation}" if self.path else operation

    @contextmanager
    def set(self, **changes: Any) -> Iterator[None]:
        """Change fields of the tape inside the block."""
        before = {name: getattr(self, name) for name in changes}
        vars(self).update(changes)
        try:
            yield
        finally:
            vars(self).update(before)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Prefix the names of tensors made inside the block with a part's name."""
        if not name:
            yield
            return
        self.path.append(name)
        try:
            yield
        finally:
            self.path.pop()


_TAPE: ContextVar[Tape] = ContextVar("tape")


def tape() -> Tape:
    """Return the tape of the running pass."""
    return _TAPE.get()


@contextmanager
def taping(
    device: str,
    *,
    selective: bool = False,
    autocast: ShadowDtype | None = None,
    training: bool = True,
    recording: bool = True,
) -> Iterator[Tape]:
    """Start a pass on shadows, in this thread alone; `recording` says whether gradients are wanted."""
    token = _TAPE.set(Tape(ShadowDevice(device), selective, autocast, training, recording))
    try:
        yield _TAPE.get()
    finally:
        _TAPE.reset(token)


def dense(shape: Sequence[int]) -> Shape:
    """The strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


class Core:
    """A shadow's state, and the making of others. `wants_grad` is torch's `requires_grad`."""

    __slots__ = ("dtype", "node", "shape", "storage", "strides", "wants_grad")
    made_as: ClassVar[type[Core]]  # the class with torch's methods, which stands above this file

    def __init_subclass__(cls) -> None:
        Core.made_as = cls

    def __init__(
        self, shape: Shape, strides: Shape, dtype: ShadowDtype, storage: Storage, grad: bool, node: Node | None = None
    ) -> None:
        self.shape, self.strides, self.dtype, self.storage = shape, strides, dtype, storage
        self.wants_grad, self.node = grad, node

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in Core.__slots__:
            raise AttributeError(name)
        raise UnknownOperation(name)

    @property
    def device(self) -> ShadowDevice:
        return tape().device

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
        wanted = dense(self.shape)
        return all(a == b or size == 1 for a, b, size in zip(self.strides, wanted, self.shape, strict=True))

    def at(self, dim: int) -> int:
        """A dimension counted from the front."""
        if not -len(self.shape) <= dim < len(self.shape):
            raise IndexError(f"dimension {dim} of a tensor of shape {self.shape}")
        return dim % len(self.shape)

    def as_view(self, shape: Iterable[int], strides: Iterable[int]) -> Any:
        """Return a view: other shape and strides, the same memory."""
        grad = self.wants_grad and tape().recording
        return type(self)(tuple(shape), tuple(strides), self.dtype, self.storage, grad, self.node if grad else None)


# ---------------------------------------------------------------- making them


def fresh(
    shape: Sequence[int],
    dtype: ShadowDtype,
    name: str = "",
    *,
    grad: bool = False,
    strides: Shape | None = None,
    held: bool = False,
) -> Any:
    """Make a tensor with memory of its own; `held` for a weight, a buffer or a cache."""
    shape = tuple(shape)
    storage = Storage(name, shape, dtype, held=held)
    return Core.made_as(shape, dense(shape) if strides is None else strides, dtype, storage, grad)


def operation(
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
    moment = tape()
    moment.operations += 1
    given = [each for each in inputs if is_shadow(each) and each.wants_grad]
    wanted = moment.recording and dtype.is_floating_point and bool(given)
    result = fresh(shape, dtype, moment.name(name), grad=wanted, strides=strides)
    if wanted:
        undone(result, name, given, [*saves, *([result] if saves_result else ())])
    return result


def undone(result: Any, name: str, inputs: Iterable[Any], saves: Iterable[Any], work: int = 0) -> None:
    """Note an operation for the backward pass: its inputs, and the tensors it saves."""
    saved = [each.storage for each in saves if not each.storage.held]
    sources = [source_of(each) for each in inputs]
    result.node = Node(name, tape().operations, saved, sources, result.nbytes, work)


def source_of(tensor: Any) -> GradientTarget:
    """Return where a tensor's gradient goes. Only a leaf's memory is kept alive for it."""
    return GradientTarget(tensor.node, None if tensor.node else tensor.storage, tensor.nbytes)


def reached(roots: Iterable[Any], since: int = 0) -> list[Node]:
    """Find the operations after number `since` that a backward pass from `roots` goes through, first to last.

    What leads to none of the roots is not among them: torch frees it as soon as its result is gone.
    """
    waiting = [each.node for each in roots if is_shadow(each) and each.node]
    found: dict[int, Node] = {}
    while waiting:
        node = waiting.pop()
        if node.index > since and node.index not in found:
            found[node.index] = node
            waiting += [source.node for source in node.sources if source.node]
    return [found[index] for index in sorted(found)]


def collect_saved(nodes: Iterable[Node]) -> dict[Storage, None]:
    """Collect the memory that operations save, each storage once, in their order."""
    return {storage: None for node in nodes for storage in node.saves}


def is_shadow(value: Any) -> bool:
    return isinstance(value, Core)


# ---------------------------------------------------------------- shapes


def broadcast(*shapes: Shape) -> Shape:
    """The shape that all of these take part in."""
    width = max(map(len, shapes))
    padded = [(1,) * (width - len(shape)) + tuple(shape) for shape in shapes]
    found = tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))
    if any(size not in (1, want) for shape in padded for size, want in zip(shape, found, strict=True)):
        raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
    return found


def spread(strides: Shape, shape: Shape, wanted: Shape) -> Shape:
    """The strides of a tensor of `shape` seen in the larger one it is broadcast to."""
    lead = len(wanted) - len(shape)
    own = [
        0 if size == 1 and want != 1 else step for size, want, step in zip(shape, wanted[lead:], strides, strict=True)
    ]
    return (0,) * lead + tuple(own)


def elementwise_strides(shape: Shape, operands: Sequence[Any]) -> Shape:
    """The layout of an elementwise result: that of the first whole operand, if it fills its memory in some order."""
    for each in operands:
        if each.shape == shape:
            order = sorted(range(len(shape)), key=lambda dim: (-each.strides[dim], dim))
            strides, step = [0] * len(shape), 1
            for dim in reversed(order):
                strides[dim] = step
                step *= shape[dim]
            return tuple(strides) if 0 not in each.strides else dense(shape)
    return dense(shape)


def sizes_of(shape: Sequence[int], count: int) -> Shape:
    """A shape with its -1 worked out for `count` values."""
    if -1 not in shape:
        if math.prod(shape) != count:
            raise ValueError(f"{count} values do not make a shape {tuple(shape)}")
        return tuple(shape)
    known = math.prod(size for size in shape if size != -1)
    if count % max(known, 1):
        raise ValueError(f"{count} values do not make a shape {tuple(shape)}")
    return tuple(count // max(known, 1) if size == -1 else size for size in shape)


def view_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """The strides that show memory of `shape` and `strides` as `wanted`; None where only a copy would.

    As torch's computeStride: runs of dimensions that lie together may be split anew, no others.
    """
    if not math.prod(shape):
        return dense(wanted)
    found: list[int] = [0] * len(wanted)
    at = len(wanted) - 1
    last, run, asked = (strides[-1] if strides else 1), 1, 1
    for dim in range(len(shape) - 1, -1, -1):
        run *= shape[dim]
        ends = dim == 0 or (shape[dim - 1] != 1 and strides[dim - 1] != run * last)
        if not ends:
            continue
        while at >= 0 and (asked < run or wanted[at] == 1):
            found[at] = asked * last
            asked *= wanted[at]
            at -= 1
        if asked != run:
            return None
        if dim:
            last, run, asked = strides[dim - 1], 1, 1
    while at >= 0:
        found[at] = last
        at -= 1
    return tuple(found)
