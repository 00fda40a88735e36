"""Record the torch calls of a layer, and replay them without the Python around them.

A decoding step of a small model spends more time in Python (modules, properties, look-ups of weights) than in torch. In
every step a layer makes the same torch calls with the same weights; whatever differs comes from its Step. So the calls
are recorded as they happen (as torch.jit.trace and CUDA graphs do), and written as a straight-line Python function (as
torch.fx does), which later steps call. A replay gives the same bits as running the layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zoo.model.step import Step

ASKING = frozenset({"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad", "_version", "is_mkldnn"})
ASKING |= {"size", "dim", "numel", "stride", "data_ptr", "storage_offset", "is_floating_point", "is_contiguous"}
ASKING |= {"is_complex", "element_size", "is_sparse", "is_quantized", "is_nested", "is_meta", "is_cpu", "itemsize"}
ASKING |= {"_set_grad_enabled"}  # replayed steps have no gradients anyway
"""Attributes and methods of a tensor that return no tensor and do not depend on its values: they need no replay."""

SHAPING = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"})
"""Calls whose output's size depends on values: these cannot be replayed."""

WRITING = frozenset(f"__{name}__" for name in ("setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior", "ipow"))
"""Operators that change their first argument in place."""

VIEWS = frozenset({"reshape", "view", "unflatten", "flatten", "expand", "view_as"})
"""Calls that are not recorded if they return their input in the same shape."""

SMALL = 65536
"""Maximum number of values of a constant computed from weights alone: larger results are computed anew in each replay,
so that no copy of a matrix is kept for each number of rows."""


def _record(method: Callable[..., Any]) -> Any:
    """Make the method of a RecordingStep that records the calls of this method of Step."""

    def ask(self: RecordingStep, *args: Any, **options: Any) -> Any:
        return self._ask(method, *args, **options)

    return ask


class RecordingStep(Step):
    """A Step that records the methods that a layer calls on it, to repeat the calls on the Step of a later pass."""

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self.__dict__ |= step.__dict__
        self._recorder = recorder
        if step.cross is not None:
            self.cross = RecordingStep(step.cross, recorder)

    def _ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        recorder = self._recorder
        if recorder.paused:
            return method(self, *args, **options)  # inside a call that is replayed as a whole
        with recorder.pause():
            result = method(self, *args, **options)
        recorder.note(method, (self, *args), options, result)
        return result

    def recall(self, compute: Callable[[Any], tuple[Any, ...]], *names: str) -> tuple[Any, ...]:
        if self.memory is not None:
            self._recorder.refuse("an encoder's output is read")
            return super().recall(compute, *names)
        return self._ask(Step.recall, _is_kept, *names)

    def give(self, channel: str, value: object) -> Any:
        return self._ask(Step.give, channel, value) if channel in self.gives else value

    def choose(self, pick: Any, k: Any, *queries: Any) -> None:
        self._ask(_choose, pick.func, pick.keywords, k, *queries)

    remember, apply, attend = _record(Step.remember), _record(Step.apply), _record(Step.attend)
    take_choice, state, hold = _record(Step.take_choice), _record(Step.state), _record(Step.hold)


def _choose(step: Step, pick: Callable[..., Any], how: dict[str, Any], k: torch.Tensor, *queries: Any) -> None:
    """Call Step.choose with a partial function. Its parts are recorded, because two partial objects are never equal."""
    Step.choose(step, partial(pick, **how), k, *queries)


TELLING = frozenset({Step.hold, Step.state, Step.take_choice, _choose})
"""Calls on a Step that are recorded although they may return no tensor."""


def _is_kept(memory: object) -> Any:
    raise AssertionError("a source's keys are read from the cache once they are there")


class Recorder(TorchFunctionMode):
    """Record, in order, every torch call within the block whose arguments depend on `x` or on a Step.

    `lines` are the calls as Python: `x`, `step`, v0, v1, … are values of this pass, k0, k1, … the `constants`
    (functions, weights, numbers). `checked` are calls on constants alone, whose results are constants too. `refused` is
    the reason why the calls cannot be replayed, or None: for example, something read a tensor's values.
    """

    def __init__(self, x: torch.Tensor, step: Step) -> None:
        super().__init__()
        self.step = RecordingStep(step, self)
        self.lines: list[str] = []
        self.constants: list[Any] = []
        self.checked: list[Any] = []
        self.refused: str | None = None
        self.paused, self._count = False, 0
        self._held: list[Any] = [x]  # keeps tensors alive, so that no id is used twice
        self._names: dict[int, str] = {id(x): "x", id(self.step): "step"}
        if self.step.cross is not None:
            self._names[id(self.step.cross)] = "step.cross"
        self._offered = dict(_list_tensors(step))

    def let_go(self) -> None:
        """Free the tensors, which a reference cycle of recorder and Step would otherwise keep until garbage
        collection."""
        self._held.clear()
        del self.step

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing in the block. Leaves the torch mode, under which compiled functions would be recompiled."""
        self.__exit__(None, None, None)
        self.paused = True
        try:
            yield
        finally:
            self.paused = False
            self.__enter__()

    def refuse(self, reason: str) -> None:
        """Set the reason why the calls cannot be replayed; the first one stays."""
        self.refused = self.refused or reason

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, result)
        return result

    def note(self, func: Any, args: Sequence[Any], options: dict[str, Any], result: object) -> None:
        """Record one call and its result."""
        name = _name_function(func)
        if not _holds_tensor(result) and func not in TELLING and name != "__setitem__":
            if name not in ASKING:
                self.refuse(f"{name} reads a tensor's values")
            return
        if self._changes_nothing(name, args, result):
            self._held.append(result)
            if self._varies(args[0]):
                self._names[id(result)] = self._write(args[0])
            return
        if _shapes(name, args):
            self.refuse(f"{name} takes as many as values say")
        if (_writes(name) or "out" in options) and id(args[0]) not in self._names:
            self.refuse(f"{name} changes what a layer keeps")
        if self._varies(tuple(args)) or self._varies(options) or not _is_light(result, args):
            given = [*map(self._write, args), *(f"{key}={self._write(each)}" for key, each in options.items())]
            call = f"{self._keep(func)}({', '.join(given)})"
            self.lines.append(f"{self._name(result)} = {call}")
        else:  # a call on constants alone: its result is a constant
            self.checked.append((func, tuple(args), options))
            self._held.append(result)

    def _changes_nothing(self, name: str, args: Sequence[Any], result: object) -> bool:
        """Whether a call just returns its input: a view of the same shape, a cast to the same dtype."""
        first: Any = args[0] if args else None
        if result is first:
            return not _writes(name)
        if name not in VIEWS or not isinstance(result, torch.Tensor):
            return False
        same = result.shape == first.shape and result.stride() == first.stride() and result.dtype == first.dtype
        return same and result.data_ptr() == first.data_ptr()

    def _varies(self, value: object) -> bool:
        """Whether a value belongs to this pass: a tensor or Step that has a name, or a container of one."""
        if isinstance(value, tuple | list):
            return any(map(self._varies, value))
        if isinstance(value, dict):
            return any(map(self._varies, value.values()))
        return id(value) in self._names or (isinstance(value, torch.Tensor) and id(value) in self._offered)

    def _write(self, value: object) -> str:
        """Return an argument as Python source."""
        if not self._varies(value):
            return self._keep(value)
        if isinstance(value, tuple):
            return f"({''.join(f'{self._write(each)}, ' for each in value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(self._write, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self._write(each)}' for key, each in value.items())}}}"
        if id(value) not in self._names:
            self.lines.append(f"{self._name(value)} = {self._offered[id(value)]}")
        return self._names[id(value)]

    def _keep(self, value: object) -> str:
        self.constants.append(value)
        return f"k{len(self.constants) - 1}"

    def _name(self, result: object) -> str:
        """Name a call's result, or its parts, and return the assignment's target."""
        if isinstance(result, tuple | list):
            return f"[{', '.join(map(self._name, result))}]"
        self._held.append(result)
        if isinstance(result, torch.Tensor) and id(result) in self._names:
            return self._names[id(result)]  # changed in place
        self._count += 1
        name = f"v{self._count - 1}"
        if isinstance(result, torch.Tensor):
            self._names[id(result)] = name
        return name


def _name_function(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    return func.__self__.__name__ if name == "__get__" else name


def _writes(name: str) -> bool:
    """Whether a function of this name changes its first argument: `add_`, `+=`, `x[0] = …`."""
    return name in WRITING or (name.endswith("_") and not name.endswith("__"))


def _holds_tensor(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)


def _shapes(name: str, args: Sequence[Any]) -> bool:
    """Whether a call's output size depends on the values of a tensor."""
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(each, torch.Tensor) and each.dtype is torch.bool for each in index)
    return name in SHAPING or (name == "repeat_interleave" and isinstance(args[1], torch.Tensor))


def _is_light(result: object, args: Sequence[Any]) -> bool:
    """Whether keeping a result takes little memory: it is small, or a view of an argument."""
    if isinstance(result, tuple | list):
        return all(_is_light(each, args) for each in result)
    if not isinstance(result, torch.Tensor) or result.numel() <= SMALL:
        return True
    given = (each for each in args if isinstance(each, torch.Tensor))
    return any(each.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for each in given)


def _list_tensors(step: Step) -> Iterator[tuple[int, str]]:
    """Yield the id of each tensor in a Step's attributes, and the Python expression that reads it."""
    own = {f"step.{name}": getattr(step, name) for name in ("tables", "positions", "ids")}
    own |= {
        f"step.{place}[{name!r}]": each
        for place in ("extra", "taken")
        for name, each in (getattr(step, place) or {}).items()
    }
    for path, value in own.items():
        if isinstance(value, torch.Tensor):
            yield id(value), path
        elif isinstance(value, tuple):
            yield from ((id(each), f"{path}[{place}]") for place, each in enumerate(value))


# ---------------------------------------------------------------- replaying


class Recording:
    """A layer's calls, compiled: `replay(x, step)` computes the layer's output for another input in another pass."""

    def __init__(self, recorder: Recorder, y: Any) -> None:
        result = recorder._write(y)
        lines = "".join(f" {line}\n" for line in (*recorder.lines, f"return {result}"))
        self.source = sys.intern(f"def replay(x, step):\n{lines}")  # one string for equal layers
        self._constants, self._checked = recorder.constants, recorder.checked
        names = {f"k{number}": each for number, each in enumerate(self._constants)}
        exec(_compile(self.source), names)  # source has only the recorder's own names, and keywords
        self.replay: Callable[[Any, Step], Any] = names["replay"]

    def __eq__(self, other: object) -> bool:
        """Whether another pass made the same calls, with the same constants."""
        if not isinstance(other, Recording) or self.source != other.source:
            return False
        return _same((self._constants, self._checked), (other._constants, other._checked))


@lru_cache(256)
def _compile(source: str) -> Any:
    """Compile a recording's source. The code is cached, because layers of one kind have the same source."""
    return compile(source, "<recording>", "exec")


def _same(a: Any, b: Any) -> bool:
    """Whether arguments are equal. Containers are compared item by item and tensors by value, all else by type and
    `==`."""
    if a is b:
        return True
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):  # computed from weights
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b
