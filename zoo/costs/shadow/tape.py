"""Record a pass on shadows: its operations, the storages that they save for the backward pass, the bytes alive."""

from __future__ import annotations

import math
import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zoo.costs.shadow.dtypes import ShadowDtype
from zoo.costs.shadow.strides import Shape
from zoo.errors import ZooError


class UnknownOperation(ZooError):
    """Raised when a forward pass cannot be traced, by default because it uses a torch operation whose saved tensors are
    not listed in operations.py. The pass then has no figures, even if the component catches the exception."""

    def __init__(self, name: str, why: str = "") -> None:
        listed = "is a torch operation whose saved tensors are not listed (a line in zoo/costs/shadow/operations.py)"
        super().__init__(f"memory: '{name}' {why or listed}")
        running = _TAPE.get(None)
        if running is not None and running.unknown is None:
            running.unknown = self


NEEDS_VALUES = "needs a tensor's values, and counting has none"
WRITES = "writes into a tensor, and counting follows new tensors only"
FAILED = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)
"""Exceptions that a component may raise when a shadow behaves differently from a tensor, or shapes do not fit."""


@contextmanager
def named_failures(component: str) -> Iterator[None]:
    """Turn a failure inside a component's forward pass into an UnknownOperation with the component's name."""
    try:
        yield
    except FAILED as error:
        here = os.path.dirname(__file__)
        frames = traceback.extract_tb(error.__traceback__)
        own = [each for each in frames if os.path.dirname(each.filename) != here]
        place = f"{own[-1].name}, {os.path.basename(own[-1].filename)} line {own[-1].lineno}" if own else component
        what = str(error).partition("\n")[0]
        why = f"failed on shapes without values in {place}: {type(error).__name__}: {what}"
        raise UnknownOperation(component, why) from error


@dataclass(frozen=True)
class ShadowDevice:
    """The device of the pass: "cuda" has fused norms and attention, "cpu" builds some of them from elementary ops."""

    type: str


class Storage:
    """The memory that a tensor shares with its views. The tape counts its bytes while it is alive, unless it is `held`:
    weights, buffers and caches are counted elsewhere."""

    __slots__ = ("_tape", "dtype", "held", "name", "nbytes", "shape")

    def __init__(self, name: str, shape: Shape, dtype: ShadowDtype, *, held: bool = False) -> None:
        self.name, self.shape, self.dtype, self.held = name, shape, dtype, held
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._tape = current_tape()
        self._tape.count(0 if held else self.nbytes)

    def hold(self) -> None:
        """Stop counting this storage: from now on it belongs to the model or its cache."""
        if not self.held:
            self.held = True
            self._tape.count(-self.nbytes)

    def __del__(self) -> None:
        self._tape.count(0 if self.held else -self.nbytes)


class GradientTarget(NamedTuple):
    """An input that requires a gradient, and its bytes. It is given by the operation that made it (`node`) or, for a
    leaf, by its memory (`leaf`)."""

    node: TapeNode | None
    leaf: Storage | None
    nbytes: int


@dataclass(eq=False, slots=True)
class TapeNode:
    """An operation in autograd's graph. It `saves` storages for its backward pass, which takes `work` more bytes.
    `path` is the path of its part in the traced layer, empty for the layer's own operations. `factor` is the number in
    a product of a tensor and a number."""

    name: str
    path: tuple[str, ...]
    index: int
    saves: list[Storage]
    sources: list[GradientTarget]
    nbytes: int
    work: int
    factor: float = 1.0


class CoreGradients(NamedTuple):
    """Which of q, k and v of an attention have a gradient, their widths, and whether it is cross-attention."""

    of_q: bool
    of_k: bool
    of_v: bool
    width: int
    v_width: int
    crosses: bool


@dataclass
class NeededGradients:
    """Which gradients the backward pass computes: of the input and of the weight of each product, and of each
    attention's operands; by tower, kind of layer (None outside layers) and path."""

    products: dict[tuple[str, str | None, str], tuple[bool, bool]] = field(default_factory=dict)
    cores: dict[tuple[str, str | None, str], CoreGradients] = field(default_factory=dict)


@dataclass(eq=False)
class Tape:
    """The record of one pass: the number of operations, the `path` of the running part, the `live` bytes and their peak
    (`most`). A `selective` pass saves no intermediate tensors of attention and recomputes them. `autocast` is the dtype
    of matrix products under autocast, None without; `unknown` is the first operation that could not be traced.
    `section` is the tower and the kind of layer that is traced; `needs` notes what its backward pass computes, and
    `elements` counts by section and operation the elements of each operation's largest tensor."""

    device: ShadowDevice
    selective: bool
    autocast: ShadowDtype | None
    training: bool = True
    recording: bool = True
    path: list[str] = field(default_factory=list)
    unknown: UnknownOperation | None = None
    operations: int = 0
    section: tuple[str, str | None] = ("", None)
    needs: NeededGradients = field(default_factory=NeededGradients)
    elements: Counter[tuple[tuple[str, str | None], str]] = field(default_factory=Counter)
    live: int = 0
    most: int = 0

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


def current_tape() -> Tape:
    """Return the running pass's tape."""
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
    """Start a pass on shadows in this thread only. `recording` says whether autograd saves tensors. At the end of the
    pass, raises the first UnknownOperation of the pass, even if a component has caught it."""
    tape = Tape(ShadowDevice(device), selective, autocast, training, recording)
    token = _TAPE.set(tape)
    try:
        yield tape
    finally:
        _TAPE.reset(token)
    if tape.unknown is not None:
        raise tape.unknown
