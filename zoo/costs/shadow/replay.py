"""Run components' own code with stand-ins for torch: the same functions, with other globals.

A forward pass finds `torch` and `F` among the globals of its module. `replace_torch` copies a function and gives the
copy globals in which torch, and functions that use torch, are replaced at first use. Nothing is patched: other threads
run the original code, and torch is never loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from zoo import lazy
from zoo.costs.shadow import names
from zoo.costs.shadow.elementwise import multiply
from zoo.costs.shadow.norms import divide_by_rms, fused_attention
from zoo.costs.shadow.reductions import pick_last
from zoo.costs.shadow.tape import CoreGradients, current_tape
from zoo.costs.shadow.tensor import collect_saved, find_reached, is_shadow, record_node, wants_gradient
from zoo.kernels import attend, machine_of, score_bias
from zoo.kernels.base import Kernel, Machine
from zoo.model import ffn, norm
from zoo.model.position import rotary
from zoo.spec import Spec


class _Globals(dict[str, Any]):
    """A module's globals; torch is replaced in each value at its first use."""

    def __init__(self, module: dict[str, Any]) -> None:
        self._module = module

    def __missing__(self, name: str) -> Any:
        value = self[name] = replace_torch(self._module[name])  # a KeyError sends Python on to the builtins
        return value


class _Module:
    """A module of zoo; torch is replaced in each attribute at its use."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return replace_torch(getattr(self._module, name))


_globals: dict[str, _Globals] = {}
_shaded: dict[Any, Any] = {}


def replace_torch(value: Any) -> Any:
    """Replace torch in a value: in a function's globals, a class's methods, a component's fields. A module, function,
    type or dtype of torch becomes its stand-in. Other values, and the code of other packages, are returned
    unchanged."""
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
        return {name: replace_torch(each) for name, each in value.items()}
    return value


_LAZY = type(lazy.torch)


def _module(module: Any) -> Any:
    """Replace a module: torch by its stand-in, and a module of zoo by one with torch replaced in its attributes."""
    if isinstance(module, _LAZY):
        return names.torch if module is lazy.torch else names.F
    if module.__name__.partition(".")[0] == "torch":
        return names.find_name(module.__name__.partition(".")[2])
    return _Module(module) if module.__name__.startswith("zoo.") else module


def _torch_path(value: Any) -> str | None:
    """Give the path below torch of a torch function, type or dtype, as in `from torch import cat`; None for others."""
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
    """Whether a function or class is component code: zoo's own, or from a module that defines a component."""
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


def _core(attend_on_shadows: Any) -> Any:
    """Wrap `attend`: name its tensors "core", and in a selective pass recompute it in the backward pass."""

    def run(*given: Any, **options: Any) -> Any:
        moment = current_tape()
        q, k, v = given[:3]
        operands = wants_gradient(q), wants_gradient(k), wants_gradient(v)
        core = CoreGradients(*operands, q.shape[-1], v.shape[-1], crosses="cross" in moment.path)
        moment.needs.cores[*moment.section, ".".join(moment.path)] = core
        with moment.inside("core"):
            begun = moment.operations
            result = attend_on_shadows(*given, **options)
        if moment.selective and result.wants_grad:
            tensors = [each for each in (*given, *options.values()) if is_shadow(each)]
            work = sum(each.nbytes for each in collect_saved(find_reached([result], begun)))
            record_node(result, "core", [each for each in tensors if each.wants_grad], tensors, work)
        return result

    return run


def multiply_gate(act: Any, gate: Any, up: Any) -> Any:
    """Apply `zoo.model.ffn.multiply_gate`, which saves its two inputs and computes `act` again in the backward pass."""
    begun = current_tape().operations
    result = multiply(act(gate), up)
    if result.wants_grad:
        again = collect_saved(find_reached([result], begun))
        work = sum(each.nbytes for each in again if each not in (gate.storage, up.storage))
        record_node(result, "gating", [each for each in (gate, up) if each.wants_grad], [gate, up], work)
    return result


REPLACED = {
    (attend.__module__, attend.__name__): _core,
    (machine_of.__module__, machine_of.__name__): lambda _: (
        lambda device: Machine(device.type, (9, 0) if device.type == "cuda" else None, frozenset({"compiler"}))
    ),
    (norm.divide_by_rms.__module__, norm.divide_by_rms.__name__): lambda _: divide_by_rms,
    (ffn.multiply_gate.__module__, ffn.multiply_gate.__name__): lambda _: multiply_gate,
    (score_bias.pick_last.__module__, score_bias.pick_last.__name__): lambda _: pick_last,
    (rotary.turn.__module__, rotary.turn.__name__): lambda _: replace_torch(rotary.turn_pairs),
}
"""Functions with a wrapper or substitute on shadows: `attend`; `machine_of`, which gives a machine with torch alone;
and functions with a derivative of their own."""


class Fused:
    """Stand in for a fused kernel: it saves q, k, v, the result and logsumexp, and stores no scores."""

    pages_in_place = True

    def __init__(self, kernel: Kernel) -> None:
        self.name, self.refuses, self.call = kernel.name, kernel.refuses, kernel.call

    def can_load(self, *_: Any) -> bool:
        """Return True: a trace follows only shapes, so no kernel is loaded."""
        return True

    runs = can_load

    def prepare(self, *_: Any) -> None:
        """Prepare nothing: a fused kernel's own arguments (cu_seqlens …) are a few numbers per row."""

    def __call__(self, q: Any, k: Any, v: Any, how: Any) -> Any:
        return fused_attention(q, k, v)


def _class(cls: type) -> type:
    """Derive a class with torch replaced in its methods, both own ones and those inherited from zoo."""
    if issubclass(cls, BaseException) or not any(_works(base) for base in cls.__mro__ if _ours(base)):
        return cls
    own: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if _ours(base):
            methods = {
                name: each for name, each in vars(base).items() if isinstance(each, FunctionType) and _ours(each)
            }
            own |= {name: replace_torch(each) for name, each in methods.items()}
            getters = {name: each.fget for name, each in vars(base).items() if isinstance(each, property)}
            own |= {name: property(replace_torch(each)) for name, each in getters.items()}
    return type(cls.__name__, (cls,), own | {"__module__": cls.__module__})


def _works(cls: type) -> bool:
    """Whether a class's code may reach torch, so that it has to run on shadows: its module uses torch, imports a
    function of REPLACED, or imports something else that uses torch (a position bias; a function of zoo.model or
    zoo.distributed)."""
    return _uses_torch(cls.__module__) or any(
        (value.__module__, value.__name__) in REPLACED
        or (
            value.__module__ != cls.__module__
            and (
                issubclass(value, score_bias.Bias)
                if isinstance(value, type)
                else value.__module__.startswith(("zoo.model", "zoo.distributed"))
            )
            and _uses_torch(value.__module__)
        )
        for value in vars(sys.modules[cls.__module__]).values()
        if isinstance(value, FunctionType | type) and value.__module__  # torch.compile leaves functions without one
    )


def _uses_torch(module: str) -> bool:
    return any(
        isinstance(value, _LAZY) or (isinstance(value, ModuleType) and value.__name__ == "torch")
        for value in vars(sys.modules[module]).values()
    )


def _instance(value: Any) -> Any:
    """Copy a component or kernel, with torch replaced in its class and fields."""
    made = object.__new__(replace_torch(type(value)))
    vars(made).update({name: replace_torch(each) for name, each in vars(value).items()})
    return made
