# E experts
"""Record the magnitude of activations layer by layer, and the experts that routers choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.inspection.heads import list_modules, measure_entropy
from zoo.lazy import Tensor, torch
from zoo.model.block.sublayers import SubLayers
from zoo.model.router import Router, Routes

if TYPE_CHECKING:
    from zoo.spec import Spec

WATCHED = ("attention", "ffn", "block")
"""Axes whose outputs are measured: sub-layers, and the residual stream after a layer (`block`)."""


@dataclass
class ActivationStats:
    """Statistics of one module's outputs: sum of squares, number of values, largest magnitude. If the outputs are added
    to the residual stream, `joins` names the sub-layer, and `factor` multiplies them."""

    path: str
    axis: str
    kind: str
    joins: str | None = None
    factor: float = 1.0
    squares: float = 0.0
    count: int = 0
    largest: float = 0.0

    def add(self, output: Tensor) -> None:
        values = output.detach().float()
        self.squares += float(values.double().square().sum())
        self.count += values.numel()
        self.largest = max(self.largest, float(values.abs().max()))

    def describe(self) -> dict[str, Any]:
        """Return the root mean square and the largest magnitude as plain data. For outputs that are added to the
        residual stream, also the root mean square times `factor` (`added`)."""
        rms = math.sqrt(self.squares / max(self.count, 1))
        about = {"path": self.path, "axis": self.axis, "kind": self.kind, "rms": rms, "largest": self.largest}
        return about | ({"joins": self.joins, "added": rms * self.factor} if self.joins else {})


@dataclass
class Routing:
    """Number of tokens that one router sent to each expert (`loads` [E])."""

    path: str
    kind: str
    loads: Tensor

    def describe(self) -> dict[str, Any]:
        """Return each expert's share, the experts without a token (`dead`), the `evenness` (entropy of the shares ÷ log
        E, 1 if all are equal), and the largest share × E (`busiest`)."""
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
    """Activations and routings recorded by hooks, in the order of the forward pass. A module that runs several times in
    a pass, such as a shared layer, has an entry for each time."""

    def __init__(self) -> None:
        self.activations: dict[tuple[str, int], ActivationStats] = {}
        self.routings: dict[tuple[str, int], Routing] = {}
        self.places: dict[str, int] = {}
        self.joins: dict[str, tuple[str, float]] = {}
        """Sub-layer and factor, by path, of the modules whose outputs are added to the residual stream."""

    def count_call(self, path: str) -> tuple[str, int]:
        """Return the key of a call: the module's path, and the call's number in this pass, from 0."""
        number = self.places[path] = self.places.get(path, -1) + 1
        return path, number

    def note_output(self, path: str, spec: Spec, output: object) -> None:
        """Record a module's output. If it has several tensors, the first is recorded."""
        tensors = [each for each in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(each)]
        if tensors:
            joins, factor = self.joins.get(path, (None, 1.0))
            made = ActivationStats(path, spec.axis, spec.kind, joins, factor)
            self.activations.setdefault(self.count_call(path), made).add(tensors[0])

    def note_input(self, path: str, spec: Spec, given: Any) -> None:
        """Record the input of a tower's first layer."""
        made = ActivationStats(path, "embedding", spec.kind)
        self.activations.setdefault(self.count_call(path), made).add(given[0])

    def note_routes(self, path: str, spec: Router, routes: object) -> None:
        """Record a router's choices of experts."""
        assert isinstance(routes, Routes)
        loads = torch.bincount(routes.experts, minlength=spec.n_experts).cpu()
        key = self.count_call(path)
        known = self.routings.setdefault(key, Routing(path, spec.kind, torch.zeros_like(loads)))
        known.loads = known.loads + loads


def find_joins(block: Any) -> dict[str, tuple[str, float]]:
    """Find the modules of a layer whose outputs are added to the residual stream. Return the sub-layer's name and the
    constant factor by module. If a norm or a convolution follows a sub-layer, it counts instead. Modules inside a
    sub-layer do not count."""
    spec = block.spec
    if isinstance(spec, SubLayers):
        return {each.conv or each.out_norm or each.name: (each.name, each.scale) for each in spec.sublayers}
    axes = {name: getattr(getattr(each, "spec", None), "axis", "") for name, each in block.named_children()}
    return {name: (axis, spec.residual_scale) for name, axis in axes.items() if axis in ("attention", "ffn")}


@contextmanager
def watch_flow(model: Any) -> Iterator[Flow]:
    """Record the flow through a model within the `with` block. Call `flow.places.clear()` before each pass."""
    flow, handles = Flow(), []

    def watch(path: str, module: Any, note: Any) -> None:
        handles.append(module.register_forward_hook(lambda _, given, output: note(path, module.spec, output)))

    for path, tower in model.towers():
        first = model.get_submodule(f"{path}.blocks.0" if path else "blocks.0")
        name, spec = f"{path}.embedding" if path else "embedding", tower.embedding
        handles.append(
            first.register_forward_pre_hook(lambda _, given, name=name, spec=spec: flow.note_input(name, spec, given))
        )
    for path, block in list_modules(model, "block"):
        flow.joins |= {f"{path}.{name}": found for name, found in find_joins(block).items()}
    watched = {path: module for axis in WATCHED for path, module in list_modules(model, axis)}
    for path, module in (watched | {path: model.get_submodule(path) for path in flow.joins}).items():
        watch(path, module, flow.note_output)
    for path, module in list_modules(model, "router"):
        watch(path, module, flow.note_routes)
    try:
        yield flow
    finally:
        for handle in handles:
            handle.remove()
