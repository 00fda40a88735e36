"""Load a model's offloaded weights during its passes, by accelerate's hooks, for whole components at once.

accelerate loads a module's weights when that module is called. But a component may read the weights of its parts
without calling them (MLA's `k_b`, a convolution's kernel), and a tied head reads another module's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError
from zoo.run.layer import Borrowed, Layer


class PartHook:
    """Loads a module's weights by accelerate's hook when the first reader begins, and frees them when the last one
    ends. It does not derive from accelerate's class, because accelerate need not be installed."""

    no_grad = False

    def __init__(self, own: Any) -> None:
        self.own, self.readers = own, 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.readers += 1
        return (args, kwargs) if self.readers > 1 else self.own.pre_forward(module, *args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.readers -= 1
        return output if self.readers else self.own.post_forward(module, output)

    def init_hook(self, module: nn.Module) -> Any:
        return self.own.init_hook(module)

    def detach_hook(self, module: nn.Module) -> Any:
        return self.own.detach_hook(module)


class ComponentHook:
    """Loads the weights of all parts of a component during its pass."""

    no_grad = False

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for part in self.parts:
            part._hf_hook.pre_forward(part)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        for part in self.parts:
            part._hf_hook.post_forward(part, None)
        return output

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module

    detach_hook = init_hook


def load_by_component(model: nn.Module) -> None:
    """Hook the components of a model that accelerate dispatched, so that each loads the weights of its parts, tied ones
    included. Other models are left unchanged."""
    if not hasattr(model, "_hf_hook"):
        return
    from accelerate.hooks import add_hook_to_module

    components = [each for each in model.modules() if each is model or isinstance(each, Layer)]
    parts: dict[nn.Module, list[Any]] = {each: [*_list_parts(each)] for each in components}
    for part in {part for own in parts.values() for part in own if hasattr(part, "_hf_hook")}:
        part._hf_hook = PartHook(part._hf_hook)
    for component, own in parts.items():
        read = [part.owner if isinstance(part, Borrowed) else part for part in own]
        if hooked := [part for part in read if hasattr(part, "_hf_hook")]:
            add_hook_to_module(component, ComponentHook(hooked), append=True)  # type: ignore[arg-type]


def _list_parts(module: nn.Module) -> Iterator[Any]:
    """Yield the modules below a component whose weights it reads: those that belong to no other component, and
    embeddings and positions, which a tower reads without calling them."""
    for child in module.children():
        if not isinstance(child, Layer) or child.spec.axis in ("embedding", "position"):
            yield child
            yield from _list_parts(child)


def find_device(model: nn.Module) -> torch.device:
    """Find the device on which a model computes, even if its weights are offloaded."""
    hook: Any = getattr(model, "_hf_hook", None)
    where = [each.execution_device for each in getattr(hook, "hooks", [hook]) if hasattr(each, "execution_device")]
    return torch.device(where[0]) if where else next(model.parameters()).device


class WrappableLayer(Layer):
    """A component whose `forward` accelerate can replace. Until then it is the Spec's."""

    @property
    def forward(self) -> Callable[..., Any]:
        return self.__dict__.get("forward") or super().forward

    @forward.setter
    def forward(self, wrapped: Callable[..., Any]) -> None:
        self.__dict__["forward"] = wrapped


def make_wrappable(model: nn.Module, device_map: Mapping[str, Any] | None) -> None:
    """Let accelerate wrap the components of a model whose weights are offloaded from one device to the CPU or the disk.
    Raises ConfigError for a device_map, chosen or given, that computes on several devices."""
    places = {str(device) for device in (device_map or {}).values()}
    if len(devices := sorted(places - {"cpu", "disk"})) > 1:
        found = f"computes on {', '.join(devices)}, and the masks and positions of a pass are on one device"
        raise ConfigError(f"device_map: {found} (one of them, beside cpu and disk)")
    if len(places) > 1 or "disk" in places:
        for module in model.modules():
            if type(module) is Layer:
                module.__class__ = WrappableLayer
