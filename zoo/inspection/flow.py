# E experts
"""Watch the size of activations layer by layer, and which experts routers choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.inspection.heads import list_modules, measure_entropy
from zoo.lazy import torch
from zoo.model.router import Routes

if TYPE_CHECKING:
    from torch import Tensor

WATCHED = ("attention", "ffn", "block")
"""The axes whose outputs are measured: what sub-layers add, and the stream after a layer."""


@dataclass
class Activation:
    """The outputs of one module: the sum of their squares, how many there are, and the largest."""

    path: str
    axis: str
    kind: str
    squares: float = 0.0
    count: int = 0
    largest: float = 0.0

    def add(self, output: Tensor) -> None:
        values = output.detach().float()
        self.squares += float(values.double().square().sum())
        self.count += values.numel()
        self.largest = max(self.largest, float(values.abs().max()))

    def describe(self) -> dict[str, Any]:
        """The root mean square, and the largest activation."""
        rms = math.sqrt(self.squares / max(self.count, 1))
        return {"path": self.path, "axis": self.axis, "kind": self.kind, "rms": rms, "largest": self.largest}


@dataclass
class Routing:
    """How many tokens chose each expert [E] of one mixture."""

    path: str
    kind: str
    loads: Tensor

    def describe(self) -> dict[str, Any]:
        """The share of each expert, those that no token chose, and how even the shares are: their entropy over log E, 1
        where all are equal."""
        shares = self.loads.double() / max(int(self.loads.sum()), 1)
        n_experts = len(shares)
        return {
            "path": self.path,
            "kind": self.kind,
            "shares": shares.tolist(),
            "dead": [at for at, load in enumerate(self.loads.tolist()) if not load],
            "evenness": float(measure_entropy(shares)) / math.log(n_experts) if n_experts > 1 else 1.0,
            "busiest": float(shares.max()) * n_experts,
        }


class Flow:
    """Activations and routings that hooks have recorded, in the order of a pass. A module that runs several times in a
    pass, as shared layers do, is recorded each time."""

    def __init__(self) -> None:
        self.activations: dict[tuple[str, int], Activation] = {}
        self.routings: dict[tuple[str, int], Routing] = {}
        self.places: dict[str, int] = {}

    def count_call(self, path: str) -> tuple[str, int]:
        """The module and the number of its call in this pass."""
        number = self.places[path] = self.places.get(path, -1) + 1
        return path, number

    def note_output(self, path: str, spec: Any, output: Any) -> None:
        """Add a module's output, or the first tensor of several."""
        tensors = [each for each in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(each)]
        if tensors:
            made = Activation(path, spec.axis, spec.kind)
            self.activations.setdefault(self.count_call(path), made).add(tensors[0])

    def note_input(self, path: str, spec: Any, given: Any) -> None:
        """Add what the first layer of a tower reads."""
        made = Activation(path, "embedding", spec.kind)
        self.activations.setdefault(self.count_call(path), made).add(given[0])

    def note_routes(self, path: str, spec: Any, routes: Any) -> None:
        """Add the experts that tokens were sent to."""
        assert isinstance(routes, Routes)
        loads = torch.bincount(routes.experts, minlength=spec.n_experts).cpu()
        key = self.count_call(path)
        known = self.routings.setdefault(key, Routing(path, spec.kind, torch.zeros_like(loads)))
        known.loads = known.loads + loads


@contextmanager
def watch_flow(model: Any) -> Iterator[Flow]:
    """Watch a model while the block runs; call `flow.places.clear()` before each pass."""
    flow, handles = Flow(), []

    def watch(path: str, module: Any, note: Any) -> None:
        handles.append(module.register_forward_hook(lambda _, given, output: note(path, module.spec, output)))

    for path, tower in model.towers():
        first = model.get_submodule(f"{path}.blocks.0" if path else "blocks.0")
        name, spec = f"{path}.embedding" if path else "embedding", tower.embedding
        handles.append(
            first.register_forward_pre_hook(lambda _, given, name=name, spec=spec: flow.note_input(name, spec, given))
        )
    for axis in WATCHED:
        for path, module in list_modules(model, axis):
            watch(path, module, flow.note_output)
    for path, module in list_modules(model, "router"):
        watch(path, module, flow.note_routes)
    try:
        yield flow
    finally:
        for handle in handles:
            handle.remove()
