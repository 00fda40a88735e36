"""Compute the gradient of one optimizer step: microbatches, accumulation, clipping and autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.tokens import Batch, map_tensors, move_batch, split_rows
from zoo.distributed.sharded_tensors import group_by_mesh, hold_back_replicas
from zoo.distributed.world import ALONE, World
from zoo.lazy import Tensor, torch
from zoo.training.objective import Objective
from zoo.training.precision import ComputingCopies

if TYPE_CHECKING:
    from torch.nn import Parameter

    from zoo.run.layer import Model
    from zoo.training.metrics import Metrics

Autocast = Callable[[], AbstractContextManager[Any]]
"""A function that returns the context manager of forward passes: torch.autocast, or one without effect."""


class Gradient(NamedTuple):
    """Statistics of an accumulated gradient: the terms of the batch's mean loss by name, the token counts [E] of each
    mixture's experts, and the number of targets."""

    terms: dict[str, Any]
    loads: list[Tensor]
    targets: int


@dataclass(frozen=True)
class WholeModel:
    """Computes gradients of a model without pipeline stages, in `parts` microbatches. With bf16_master, the gradients
    are computed with a bfloat16 copy of the weights (`copies`)."""

    weights: Model
    objective: Objective
    parts: int
    autocast: Autocast
    copies: ComputingCopies | None = None
    rows: World = ALONE
    """The processes that share a batch."""

    @property
    def model(self) -> Model:
        """The model that computes gradients."""
        return self.weights if self.copies is None else self.copies.model

    def accumulate(self, batch: Batch, whole: int | None = None, parts: int | None = None) -> Gradient:
        """Accumulate the gradient of a batch's mean loss over `parts` microbatches (`accumulate_gradient`)."""
        model, autocast = (self.weights, self.autocast) if self.copies is None else (self.copies.refresh(), nullcontext)
        return accumulate_gradient(model, self.objective, batch, parts or self.parts, autocast, whole, self.rows)

    def judge(self, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        """Sum the loss of a batch over its `count` targets (`Objective.judge`)."""
        with self.autocast():
            return self.objective.judge(self.weights, batch, count, metrics)


def accumulate_gradient(
    model: Model,
    objective: Objective,
    batch: Batch,
    parts: int,
    autocast: Autocast,
    whole: int | None = None,
    rows: World = ALONE,
) -> Gradient:
    """Accumulate the gradient of the batch's mean loss, one microbatch at a time.

    Each microbatch's summed loss is divided by the targets of the whole batch, so that a microbatch with fewer targets
    weighs less. A model's own losses are means, weighted by the microbatch's share of the targets. If several processes
    share the batch (`rows`), `whole` counts the targets of all processes.
    """
    device = next(model.parameters()).device
    targets = objective.targets(batch)
    total = max(targets if whole is None else whole, 1)
    terms: dict[str, Tensor] = {}
    loads: list[Tensor] = []
    split = (
        (move_batch(part, device), objective.count_predictions(objective.split_passes(part)[0]))
        for part in split_rows(batch, parts)
    )
    for number, found in enumerate(objective.losses(model, split, 1 / total, autocast, rows), 1):
        hold_back_replicas(model, number < parts)
        found.total.backward()
        terms = {name: terms[name] + value if name in terms else value for name, value in found.terms.items()}
        loads = [mine + more for mine, more in zip(loads, found.loads, strict=True)] if loads else found.loads
    return Gradient(terms, loads, targets)


def share_rows(batch: Batch, world: World) -> tuple[Batch, int]:
    """Return this process' rows of a batch, and whether they count (1 or 0). All processes must run equally many
    passes. If there are fewer rows than processes, each takes all rows, and only the main process' rows count."""
    rows = len(batch.input_ids)
    if rows < world.size:
        return batch, int(world.main)
    cuts = [part * rows // world.size for part in (world.rank, world.rank + 1)]
    return map_tensors(batch, lambda each: each[cuts[0] : cuts[1]]), 1


def clip_gradient(parameters: list[Parameter], most: float | None, norm: Tensor) -> None:
    """Clip a gradient of norm `norm` to the norm `most`; None clips nothing."""
    looks = norm.device.type == "cpu"  # reading the norm on another device would synchronise with it
    if most is not None and not (looks and norm <= most):
        for group in group_by_mesh(parameters):
            torch.nn.utils.clip_grads_with_norm_(group, most, norm)


def choose_autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """Choose the context that forward passes run in: torch.autocast to bf16, or none."""
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16)
