"""The components' own code with shadows in torch's place: the same functions, with other globals.

A forward pass says `torch.cat` and `F.silu`, names of its module. `shaded` gives a copy of a function whose globals are
those of its module but for torch and what uses it, which are shaded in turn, on first use. Nothing is patched: the code
at work elsewhere, in another thread, is untouched, and torch is never loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from zoo import lazy
from zoo.costs.shadow import names
from zoo.costs.shadow.norms import fused_attention
from zoo.costs.shadow.recording import (
    current_tape,
)
from zoo.costs.shadow.tensor import collect_saved, find_reached, is_shadow, record_node
from zoo.kernels import attend, machine_of
from zoo.kernels.base import Kernel, Machine
from zoo.spec import Spec


class _Globals(dict[str, Any]):
    """A module's names, each shaded when it is first looked up."""

    def __init__(self, module: dict[str, Any]) -> None:
        self._module = module

    def __missing__(self, name: str) -> Any:
        value = self[name] = shaded(self._module[name])  # a KeyError sends Python on to the builtins
        return value


class _Module:
    """A module of ours, its names shaded as they are asked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return shaded(getattr(self._module, name))


_globals: dict[str, _Globals] = {}
_shaded: dict[Any, Any] = {}


def shaded(value: Any) -> Any:
    """Replace torch in a value: in a function's globals, a class's methods, a component's fields. What uses no tensors
    comes back unchanged."""
    if isinstance(value, ModuleType | _LAZY):
        return _module(value)
    if (path := _torch_path(value)) is not None:
        return names.find_name(path)
    if isinstance(value, FunctionType | type):
        if not _ours(value):
            return value
        if value not in _shaded:
            _shaded[value] = _function(value) if isinstance(value, FunctionType) else _class(value)
        return _shaded[value]
    if isinstance(value, Kernel) and value.fused and value.name != "sdpa":
        return Fused(value)
    if isinstance(value, Spec | Kernel):
        return _instance(value)
    if isinstance(value, Mapping):
        return {name: shaded(each) for name, each in value.items()}
    return value


_LAZY = type(lazy.torch)


def _module(module: Any) -> Any:
    """torch as a pass on shadows finds it, under zoo's lazy name or its own; one of ours with its names shaded."""
    if isinstance(module, _LAZY):
        return names.torch if module is lazy.torch else names.F
    if module.__name__.partition(".")[0] == "torch":
        return names.find_name(module.__name__.partition(".")[2])
    return _Module(module) if module.__name__.startswith("zoo.") else module


def _torch_path(value: Any) -> str | None:
    """The path below torch of a function, a type or a dtype of torch's that a module imported by its own name."""
    if isinstance(value, FunctionType | type):
        home, name = value.__module__, value.__name__
    elif isinstance(value, BuiltinFunctionType):
        home, name = value.__module__ or type(value.__self__).__module__, value.__name__
    else:
        home, name = type(value).__module__, None
    if not isinstance(home, str) or home.partition(".")[0] != "torch":
        return None
    name = str(value).removeprefix("torch.") if name is None else name
    return f"nn.functional.{name}" if home in ("torch.nn.functional", "torch._C._nn") else name


def _ours(value: Any) -> bool:
    """Whether it is code of a component: zoo's own, or that of a module which adds a component."""
    if isinstance(value, type) and issubclass(value, Spec):
        _homes.add(value.__module__)
    at = value.__module__
    return at in _homes or (at.startswith("zoo.") and not at.startswith("zoo.costs"))


_homes: set[str] = set()


def _function(function: FunctionType) -> FunctionType:
    module = function.__module__
    if module not in _globals:
        _globals[module] = _Globals(vars(sys.modules[module]))
    made = FunctionType(
        function.__code__, _globals[module], function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return REPLACED.get((module, function.__name__), lambda made: made)(made)


def _machine_of(_: Any) -> Any:
    return lambda device: Machine(device.type, (9, 0) if device.type == "cuda" else None, frozenset({"compiler"}))


def _core(attend_on_shadows: Any) -> Any:
    """`attend` under a name of its own; where the pass is selective, as torch.utils.checkpoint would run it."""

    def run(*given: Any, **options: Any) -> Any:
        moment = current_tape()
        with moment.inside("core"):
            begun = moment.operations
            result = attend_on_shadows(*given, **options)
        if moment.selective and result.wants_grad:
            tensors = [each for each in (*given, *options.values()) if is_shadow(each)]
            work = sum(each.nbytes for each in collect_saved(find_reached([result], begun)))
            record_node(result, "core", [each for each in tensors if each.wants_grad], tensors, work)
        return result

    return run


REPLACED = {
    (attend.__module__, attend.__name__): _core,
    (machine_of.__module__, machine_of.__name__): _machine_of,
}
"""What is not merely copied: attention's inside, from queries, keys and values to their mixture; and the machine, which
is one with torch alone."""


class Fused:
    """A kernel that holds no scores, for all that memory tells of it."""

    def __init__(self, kernel: Kernel) -> None:
        self.name, self.refuses, self.call = kernel.name, kernel.refuses, kernel.call

    def prepare(self, *_: Any) -> None:
        """Draws nothing: what tells a whole row's keys apart are a few numbers."""

    def __call__(self, q: Any, k: Any, v: Any, how: Any) -> Any:
        return fused_attention(q, k, v)


def _class(cls: type) -> type:
    """A class whose own methods, and those it inherits of ours, are shaded."""
    if issubclass(cls, BaseException) or not any(_works(base) for base in cls.__mro__ if _ours(base)):
        return cls
    own: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if _ours(base):
            own |= {name: _member(each) for name, each in vars(base).items() if _is_code(each)}
    return type(cls.__name__, (cls,), own | {"__module__": cls.__module__})


def _works(cls: type) -> bool:
    """Whether a class's module works on tensors."""
    return any(
        isinstance(value, _LAZY) or (isinstance(value, ModuleType) and value.__name__ == "torch")
        for value in vars(sys.modules[cls.__module__]).values()
    )


def _is_code(member: Any) -> bool:
    return isinstance(member, property) or (isinstance(member, FunctionType) and _ours(member))


def _member(member: Any) -> Any:
    return property(shaded(member.fget)) if isinstance(member, property) else shaded(member)


def _instance(value: Any) -> Any:
    """A component or kernel of the same fields, and of the shaded class."""
    made = object.__new__(shaded(type(value)))
    vars(made).update({name: shaded(each) for name, each in vars(value).items()})
    return made
