# B rows, H heads, T queries, S keys
"""Record the attention maps of softmax attention's heads, with their entropy and effective rank.

During a pass, a subclass of the eager kernel computes attention and records the probabilities. Every attention that
calls `attend` thus has maps. A mixer without a softmax over keys (a recurrence, a Fourier transform) has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.kernels.dispatch import replace_kernel
from zoo.kernels.eager import Eager
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.base import Scores
    from zoo.run.layer import Model


def measure_entropy(probs: Tensor) -> Tensor:
    """Compute the entropy −Σ p log p of probabilities [..., S], in nats: log S if all are equal, 0 if all are 0. The
    probabilities are normalised first, which removes an attention sink's share."""
    share = probs / probs.sum(-1, keepdim=True).clamp(min=1e-30)
    return -torch.xlogy(share, share).sum(-1)


def measure_rank(maps: Tensor) -> Tensor:
    """Compute the effective rank of maps [..., T, S]: exp of the entropy of the normalised singular values (Roy and
    Vetterli, 2007). It is 1 if all queries attend alike, T if each attends to a different key."""
    return measure_entropy(torch.linalg.svdvals(maps.float())).exp()


@dataclass
class HeadStats:
    """Statistics of one attention's heads, summed over sequences: maps [H, T, S] over the positions that all sequences
    have; and by head the entropy, the entropy of uniform weights, the sink's share, and the map's effective rank."""

    path: str
    kind: str
    rows: int = 0
    queries: int = 0
    maps: Tensor | None = None
    sums: defaultdict[str, Any] = field(default_factory=lambda: defaultdict(float))

    def add(self, probs: Tensor, visible: Tensor) -> None:
        """Add the probabilities [B, H, T, S] of a batch. `visible` [B, H, T] counts the keys that a query sees."""
        probs = probs.double()
        sees = (visible > 0).double()
        self.sums["entropy"] += (measure_entropy(probs) * sees).sum((0, 2))
        self.sums["uniform"] += visible.clamp(min=1).double().log().sum((0, 2))
        self.sums["sink"] += ((1 - probs.sum(-1)) * sees).sum((0, 2))
        self.sums["rank"] += measure_rank(probs).sum(0)
        self.rows += len(probs)
        self.queries += int(sees[:, 0].sum())
        maps = probs.sum(0)
        if self.maps is not None:
            cut = tuple(slice(min(sizes)) for sizes in zip(self.maps.shape, maps.shape, strict=True))
            maps = maps[cut] + self.maps[cut]
        self.maps = maps

    def mean_maps(self) -> Tensor:
        """Return the mean map of each head [H, T, S]."""
        assert self.maps is not None
        return (self.maps / self.rows).float()

    def describe(self) -> list[dict[str, float]]:
        """Return each head's mean statistics: over queries, or for the rank over sequences."""
        counts = {"entropy": self.queries, "uniform": self.queries, "sink": self.queries, "rank": self.rows}
        return [
            {name: float(values[head]) / max(counts[name], 1) for name, values in self.sums.items()}
            for head in range(len(self.sums["rank"]))
        ]


class Watcher(Eager):
    """An eager kernel that also records the probabilities of each call, for the attention that is running."""

    def __init__(self) -> None:
        self.running: list[HeadStats] = []
        self.calls: dict[tuple[str, int], HeadStats] = {}
        self.places: dict[str, int] = {}

    def weigh(self, q: Tensor, k: Tensor, how: Scores) -> Tensor:
        probs = super().weigh(q, k, how)
        if self.running:
            self.note(probs.detach(), how)
        return probs

    def note(self, probs: Tensor, how: Scores) -> None:
        """Record a call's probabilities under the running attention and the call's number in this pass."""
        attention = self.running[-1]
        number = self.places[attention.path] = self.places.get(attention.path, -1) + 1
        heads = self.calls.setdefault((attention.path, number), HeadStats(attention.path, attention.kind))
        if how.mask.sees_all:
            visible = probs.new_full(probs.shape[:3], probs.shape[-1])
        else:
            visible = how.mask.dense(probs.device).sum(-1).expand(probs.shape[:3])
        heads.add(probs, visible)


@contextmanager
def watch_heads(model: Model) -> Iterator[Watcher]:
    """Record every attention of a model within the `with` block. Call `watcher.places.clear()` before each pass."""
    watcher, handles, kernel = Watcher(), [], model.kernel
    for path, module in list_modules(model, "attention"):
        heads = HeadStats(path, module.spec.kind)
        handles.append(module.register_forward_pre_hook(lambda _, given, heads=heads: watcher.running.append(heads)))
        handles.append(module.register_forward_hook(lambda _, given, out: watcher.running.pop() and None))
    model.kernel = "eager"
    try:
        with replace_kernel("eager", watcher):
            yield watcher
    finally:
        model.kernel = kernel
        for handle in handles:
            handle.remove()


def list_modules(model: Model, axis: str) -> list[tuple[str, Any]]:
    """List the modules of an axis by their path, in order."""
    return [
        (path, each) for path, each in model.named_modules() if getattr(getattr(each, "spec", None), "axis", "") == axis
    ]


def list_mapless(model: Model, watcher: Watcher) -> list[dict[str, str]]:
    """List the attentions without a map, by path and kind. An attention that contains other attentions is left out."""
    seen = {path for path, _ in watcher.calls}
    return [
        {"path": path, "kind": module.spec.kind}
        for path, module in list_modules(model, "attention")
        if path not in seen and not any(inner for inner, _ in list_modules(module, "attention"))
    ]
