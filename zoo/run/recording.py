"""Record the torch calls of a layer, and replay them without the Python around them.

A decoding step of a small model spends more time in Python than in torch: modules, properties, look-ups of weights. In
every step a layer makes the same calls with the same weights; what differs it asks of its Step. So its calls are
recorded as they happen (the idea of torch.jit.trace and of CUDA graphs), and later steps replay the record.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zoo.model.step import Step

X, STEP, CROSS, FIRST = 0, 1, 2, 3
"""The slots of a layer's inputs: hidden states, its Step, and that of its cross-attention. Others follow."""

ASKING = frozenset({"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad", "_version", "is_mkldnn"})
ASKING |= {"size", "dim", "numel", "stride", "data_ptr", "storage_offset", "is_floating_point", "is_contiguous"}
ASKING |= {"is_complex", "element_size", "is_sparse", "is_quantized", "is_nested", "is_meta", "is_cpu", "itemsize"}
ASKING |= {"_set_grad_enabled"}  # a step that is replayed has no gradients either way
"""What may be asked of a tensor besides tensors: nothing that its values decide."""

SHAPING = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"})
"""Calls that give as many elements as values say."""

WRITING = frozenset(f"__{name}__" for name in ("setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior", "ipow"))
"""Operators that change their first argument."""

VIEWS = frozenset({"reshape", "view", "unflatten", "flatten", "expand", "view_as"})
"""Calls that are left out where they give their input as it is."""

SMALL = 65536
"""Numbers up to which what is made of weights alone is kept: not a copy of a matrix for each number of rows."""


class RecordingStep(Step):
    """A Step that notes what a layer asks of it, as calls to be made again on the Step of a later pass."""

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self.__dict__ |= step.__dict__
        self._recorder = recorder
        if step.cross is not None:
            self.cross = RecordingStep(step.cross, recorder)

    def _ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        recorder = self._recorder
        if recorder.paused:
            return method(self, *args, **options)  # of a call that is made again as a whole
        with recorder.pause():
            result = method(self, *args, **options)
        recorder.note(method, (self, *args), options, result)
        return result

    def remember(self, **new: Any) -> tuple[Any, ...]:
        return self._ask(Step.remember, **new)

    def recall(self, compute: Callable[[Any], tuple[Any, ...]], *names: str) -> tuple[Any, ...]:
        if self.memory is not None:
            self._recorder.refuse("an encoder's output is read")
            return super().recall(compute, *names)
        return self._ask(Step.recall, _is_kept, *names)

    def apply(self, work: Callable[..., Any], *given: Any, **options: Any) -> Any:
        return self._ask(Step.apply, work, *given, **options)

    def give(self, channel: str, value: Any) -> Any:
        return self._ask(Step.give, channel, value) if channel in self.gives else value

    def attend(self, q: Any, k: Any, v: Any, scale: float, own: Any = None, **scores: Any) -> Any:
        return self._ask(Step.attend, q, k, v, scale, own, **scores)

    def choose(self, pick: Any, k: Any, *queries: Any) -> None:
        self._ask(_choose, pick.func, pick.keywords, k, *queries)

    def state(self, name: str) -> Any:
        return self._ask(Step.state, name)

    def hold(self, **states: Any) -> None:
        self._ask(Step.hold, **states)


def _choose(step: Step, pick: Callable[..., Any], how: dict[str, Any], k: Any, *queries: Any) -> None:
    """Step.choose, of a partial function that is taken apart: two such are never equal."""
    Step.choose(step, partial(pick, **how), k, *queries)


TELLING = frozenset({Step.hold, Step.state, _choose})
"""What a layer tells its Step, or asks of it in vain: calls that give no tensor, and are made again."""


def _is_kept(memory: Any) -> Any:
    raise AssertionError("a source's keys are read from the cache once they are there")


@dataclass(frozen=True)
class Slot:
    """The place of a tensor or Step among the values of a replay, where it stands in a call's arguments."""

    slot: int


@dataclass(frozen=True)
class TorchCall:
    """One call of a recording: what is called, its arguments, in which tensors are slots, and the slots of what it
    gives."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    out: int | slice


class Recorder(TorchFunctionMode):
    """Note every torch call made in the block on tensors that come of `x` and of a Step, in order.

    `refused` says why the calls cannot be replayed, if so: something read a tensor's values.
    """

    def __init__(self, x: Any, step: Step) -> None:
        super().__init__()
        self.step = RecordingStep(step, self)
        self.calls: list[TorchCall] = []
        self.constants: list[tuple[TorchCall, Any]] = []
        self.refused: str | None = None
        self.paused, self.slots = False, FIRST
        self._held: list[Any] = [x]  # so that no id is used twice
        self._slot_of: dict[int, int] = {id(x): X, id(self.step): STEP}
        if self.step.cross is not None:
            self._slot_of[id(self.step.cross)] = CROSS
        self._offered = dict(_list_tensors(step))

    def let_go(self) -> None:
        """Free what the layer computed: recorder and Step refer to each other, and would keep it for Python's collector
        of cycles to find."""
        self._held.clear()
        del self.step

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Note nothing in the block. What is compiled there would be compiled anew for this mode, so it is left."""
        self.__exit__(None, None, None)
        self.paused = True
        try:
            yield
        finally:
            self.paused = False
            self.__enter__()

    def refuse(self, reason: str) -> None:
        """Note why this cannot be replayed."""
        self.refused = self.refused or reason

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, result)
        return result

    def note(self, func: Any, args: Sequence[Any], options: dict[str, Any], result: Any) -> None:
        """Note one call and its result."""
        name = _name(func)
        if not _holds_tensor(result) and func not in TELLING and name != "__setitem__":
            if name not in ASKING:
                self.refuse(f"{name} reads a tensor's values")
            return
        if self._changes_nothing(name, args, result):
            self._held.append(result)
            if id(args[0]) in self._slot_of:
                self._slot_of[id(result)] = self._slot_of[id(args[0])]
            return
        if _shapes(name, args):
            self.refuse(f"{name} takes as many as values say")
        if (_writes(name) or "out" in options) and id(args[0]) not in self._slot_of:
            self.refuse(f"{name} changes what a layer keeps")
        call = TorchCall(func, self._place(tuple(args)), self._place(options), FIRST)
        if _nested(call.args) or _nested(call.options) or not _is_light(result, args):
            self.calls.append(replace(call, out=self._give(result)))
        else:  # of constants alone: its result is one
            self.constants.append((call, result))
            self._held.append(result)

    def _changes_nothing(self, name: str, args: Sequence[Any], result: Any) -> bool:
        """Whether a call gives its own input, and does nothing else: a view in the same shape, a cast to its dtype."""
        first: Any = args[0] if args else None
        if result is first:
            return not _writes(name)
        if name not in VIEWS or not isinstance(result, torch.Tensor):
            return False
        same = result.shape == first.shape and result.stride() == first.stride() and result.dtype == first.dtype
        return same and result.data_ptr() == first.data_ptr()

    def _place(self, value: Any) -> Any:
        """The argument with slots for tensors of this pass."""
        if isinstance(value, torch.Tensor | RecordingStep):
            if id(value) not in self._slot_of and id(value) in self._offered:
                self._read(value)
            slot = self._slot_of.get(id(value))
            return value if slot is None else Slot(slot)
        if isinstance(value, tuple | list):
            return type(value)(map(self._place, value))
        if isinstance(value, dict):
            return {name: self._place(each) for name, each in value.items()}
        return value

    def _read(self, value: Any) -> None:
        """Note that a tensor is read from the Step."""
        self.calls.append(TorchCall(_look_up, (Slot(STEP), self._offered[id(value)]), {}, self._give(value)))

    def _give(self, result: Any) -> int | slice:
        """The slots of a call's result."""
        if isinstance(result, torch.Tensor) and id(result) in self._slot_of:
            return self._slot_of[id(result)]  # changed in place
        parts = result if isinstance(result, tuple | list) else [result]
        first = self.slots
        for number, each in enumerate(parts):
            self._held.append(each)
            if each is not None:
                self._slot_of[id(each)] = first + number
        self.slots += len(parts)
        return slice(first, self.slots) if parts is result else first


def _name(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    return func.__self__.__name__ if name == "__get__" else name


def _writes(name: str) -> bool:
    """Whether a function of this name changes its first argument: `add_`, `+=`, `x[0] = …`."""
    return name in WRITING or (name.endswith("_") and not name.endswith("__"))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)


def _shapes(name: str, args: Sequence[Any]) -> bool:
    """Whether the values of a tensor decide how many elements come of it."""
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(each, torch.Tensor) and each.dtype is torch.bool for each in index)
    return name in SHAPING or (name == "repeat_interleave" and isinstance(args[1], torch.Tensor))


def _is_light(result: Any, args: Sequence[Any]) -> bool:
    """Whether keeping a result takes little memory: it is small, or a view of an argument."""
    if isinstance(result, tuple | list):
        return all(_is_light(each, args) for each in result)
    if not isinstance(result, torch.Tensor) or result.numel() <= SMALL:
        return True
    given = (each for each in args if isinstance(each, torch.Tensor))
    return any(each.untyped_storage().data_ptr() == result.untyped_storage().data_ptr() for each in given)


def _list_tensors(step: Step) -> list[tuple[int, tuple[Any, ...]]]:
    """Tensors that a Step has itself: their ids, and where each is found."""
    own: dict[tuple[Any, ...], Any] = {(name,): getattr(step, name) for name in ("tables", "positions", "ids")}
    own |= {(place, name): each for place in ("extra", "taken") for name, each in getattr(step, place).items()}
    found = []
    for path, value in own.items():
        if isinstance(value, torch.Tensor):
            found.append((id(value), path))
        elif isinstance(value, tuple):
            found += [(id(each), (*path, place)) for place, each in enumerate(value)]
    return found


def _look_up(step: Step, path: tuple[Any, ...]) -> Any:
    value = getattr(step, path[0])
    for key in path[1:]:
        value = value[key]
    return value


# ---------------------------------------------------------------- replaying


class Recording:
    """A layer's calls, ready to be made again."""

    def __init__(self, recorder: Recorder, y: Any) -> None:
        self.recorded = recorder.calls
        self._constants = recorder.constants
        self.result = recorder._place(y)
        self._template: list[Any] = [None] * recorder.slots
        self._calls = [self._prepare(call) for call in recorder.calls]

    def __eq__(self, other: object) -> bool:
        """Whether another pass made the same calls, with the same constants."""
        mine = (self.result, self.recorded, self._constants)
        return isinstance(other, Recording) and _same(mine, (other.result, other.recorded, other._constants))

    def _prepare(self, call: TorchCall) -> tuple[Callable[..., Any], Callable[[Any], Any], int | slice]:
        """A function of plain arguments, and what gets these from the slots. Constants have slots too."""
        function, args = call.function, call.args
        if any(_nested(each) for each in (*args, *call.options.values())):
            places: list[int] = []
            function = _Unfold(function, _fold(args, places), _fold(call.options, places))
            return function, _getter(places), call.out
        values = [self._slot(each) for each in (*args, *call.options.values())]
        if call.options:
            function = _Named(function, len(args), tuple(call.options))
        return function, _getter(values), call.out

    def _slot(self, value: Any) -> int:
        if isinstance(value, Slot):
            return value.slot
        self._template.append(value)
        return len(self._template) - 1

    def replay(self, x: Any, step: Step) -> Any:
        """The layer's output for another input, in another pass."""
        values = self._template.copy()
        values[X], values[STEP], values[CROSS] = x, step, step.cross
        for function, get, out in self._calls:
            values[out] = function(*get(values))
        return values[self.result.slot]


def _nested(value: Any) -> bool:
    """Whether slots lie inside an argument."""
    if isinstance(value, tuple | list):
        return any(isinstance(each, Slot) or _nested(each) for each in value)
    return isinstance(value, dict) and any(isinstance(each, Slot) or _nested(each) for each in value.values())


def _getter(places: Sequence[int]) -> Callable[[Any], Any]:
    """A function that gets the values at these places, several or one."""
    if len(places) == 1:
        return operator.itemgetter(slice(places[0], places[0] + 1))
    return operator.itemgetter(*places) if places else lambda values: ()


def _fold(value: Any, places: list[int]) -> Any:
    """Arguments in which slots are numbered as they come, in `places`."""
    if isinstance(value, Slot):
        places.append(value.slot)
        return Slot(len(places) - 1)
    if isinstance(value, tuple | list):
        return type(value)(_fold(each, places) for each in value)
    if isinstance(value, dict):
        return {name: _fold(each, places) for name, each in value.items()}
    return value


class _Named:
    """A function whose last arguments are given by name."""

    def __init__(self, function: Callable[..., Any], plain: int, names: Sequence[str]) -> None:
        self.function, self.plain, self.names = function, plain, names

    def __call__(self, *values: Any) -> Any:
        return self.function(*values[: self.plain], **dict(zip(self.names, values[self.plain :], strict=True)))


class _Unfold:
    """A function of tensors laid end to end, which it puts where they belong among the arguments."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.function, self.args, self.options = function, args, options

    def __call__(self, *values: Any) -> Any:
        args = [_fill(each, values) for each in self.args]
        return self.function(*args, **{name: _fill(each, values) for name, each in self.options.items()})


def _fill(value: Any, values: Sequence[Any]) -> Any:
    if isinstance(value, Slot):
        return values[value.slot]
    if isinstance(value, tuple | list):
        return type(value)(_fill(each, values) for each in value)
    if isinstance(value, dict):
        return {name: _fill(each, values) for name, each in value.items()}
    return value


def _same(a: Any, b: Any) -> bool:
    """Whether arguments are the same: tensors and objects themselves, numbers and names by value."""
    if a is b:
        return True
    if isinstance(a, TorchCall) and isinstance(b, TorchCall):
        return all(_same(getattr(a, name), getattr(b, name)) for name in ("function", "args", "options", "out"))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):  # made of weights, if it is no weight itself
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b
