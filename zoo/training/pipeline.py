# B rows of a microbatch, T tokens, D model width
"""Train over the stages of a pipeline: microbatches one after the other, one forward and one backward in turn (1F1B;
Narayanan et al., 2021), by torch.distributed.pipelining."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import nn  # noqa: TID253  (imported where a pipeline is made)

from zoo.data import Batch
from zoo.lazy import torch
from zoo.training.gradient import Gradient, move_batch
from zoo.training.objective.base import list_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from zoo.ranks.group import RankGroup
    from zoo.training.gradient import Autocast
    from zoo.training.objective import Objective


class StageModule(nn.Module):
    """The layers of a stage as torch's pipeline calls them: ids [B, T] or the stream [B, T, D] of the stage before in,
    the stream or, of the last one, the loss out. What else a batch has is given to every stage."""

    def __init__(self, model: Any, objective: Objective, autocast: Autocast) -> None:
        super().__init__()
        self.model, self.objective, self.autocast = model, objective, autocast
        self.weight = 1.0
        self.terms: dict[str, Tensor] = {}
        self.loads: list[Tensor] = []

    def forward(self, x: Tensor, **batch: Tensor) -> Tensor:
        spec = self.model.spec
        inputs = {name: each for name, each in batch.items() if name != "targets"}
        stream = None if spec.begins else x
        asked: dict[str, Any] = {}
        if spec.ends:
            asked = {"targets": batch["targets"], "loss": self.objective.weigh(inputs, self.weight, None)}
        with self.autocast():
            out = self.model(**inputs, stream=stream, **asked)
        count = self.objective.targets(Batch(**{**dict.fromkeys(Batch._fields), **batch}))
        own = {name: loss * (self.weight * count) for name, loss in out.losses.items()}
        self.note({**out.terms, **{name: loss.detach() for name, loss in own.items()}}, out.loads)
        result = out.loss if spec.ends else out.hidden
        for loss in own.values():
            result = result + loss if spec.ends else _attaching().apply(result, loss)
        return result

    def note(self, terms: dict[str, Tensor], loads: list[Tensor]) -> None:
        """Add up the terms and the loads of a step's microbatches."""
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.loads = [mine + more for mine, more in zip(self.loads, loads, strict=True)] if self.loads else loads


@functools.cache
def _attaching() -> Any:
    class Attaching(torch.autograd.Function):
        """Let a loss of a stage's own have its gradient when that of the stream comes back."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
            ctx.like = loss.detach()
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return g, torch.ones_like(ctx.like)

    return Attaching


class Pipeline:
    """The stages of a pipeline, of which this process is one: `group` has them all."""

    def __init__(
        self, model: Any, group: RankGroup, objective: Objective, autocast: Autocast, microbatches: int, tokens: int
    ) -> None:
        self.model, self.group, self.objective, self.microbatches = model, group, objective, microbatches
        self.module = StageModule(model, objective, autocast)
        self.tokens = tokens  # of a row that this rank has, between sub-layers
        self.names: list[str] | None = None
        self._schedules: dict[tuple[int, int], Any] = {}

    def accumulate(self, batch: Batch, whole: int) -> Gradient:
        """Accumulate the gradient of a batch's mean loss over its microbatches, as `accumulate_gradient` does."""
        device = next(self.model.parameters()).device
        moved = move_batch(batch, device)
        self.module.weight, self.module.terms, self.module.loads = 1 / max(whole, 1), {}, []
        inputs = {**list_inputs(moved), "targets": moved.targets}
        first = (moved.input_ids,) if self.model.spec.begins else ()
        target = moved.targets if self.model.spec.ends else None
        self._schedule(*moved.input_ids.shape).step(*first, target=target, **inputs, return_outputs=False)
        return Gradient(self._share_terms(device), self.module.loads, self.objective.targets(batch))

    def _schedule(self, rows: int, tokens: int) -> Any:
        """The schedule for batches of a shape."""
        key = (rows, tokens)
        if key not in self._schedules:
            from torch.distributed.pipelining import PipelineStage, Schedule1F1B

            spec, device = self.model.spec, next(self.model.parameters()).device
            size = rows // self.microbatches
            ids = torch.empty(size, tokens, dtype=torch.long, device=device)
            stream = torch.empty(size, self.tokens, spec.d_model, device=device, requires_grad=True)
            stage = PipelineStage(
                self.module,
                self.group.rank,
                self.group.size,
                device,
                input_args=ids if spec.begins else stream,
                output_args=torch.empty((), device=device, requires_grad=True) if spec.ends else stream,
                group=self.group.group,
            )
            loss: Callable[..., Any] = lambda total, targets: total  # noqa: E731
            self._schedules[key] = Schedule1F1B(stage, self.microbatches, loss_fn=loss, scale_grads=False)
        return self._schedules[key]

    def _share_terms(self, device: Any) -> dict[str, Tensor]:
        """The terms of all stages, by name, on each."""
        from torch import distributed

        if self.names is None:
            found: list[Any] = [None] * self.group.size
            distributed.all_gather_object(found, list(self.module.terms), group=self.group.group)
            self.names = list(dict.fromkeys(name for names in reversed(found) for name in names))
        zero = torch.zeros((), device=device)
        values = torch.stack([self.module.terms.get(name, zero).detach().float() for name in self.names])
        return dict(zip(self.names, self.group.sum_up(values).unbind(), strict=True))

    def judge(self, batch: Batch) -> Tensor:
        """Sum the loss of a batch over its targets: a pass through the stages, one after the other, without gradients.
        Every stage gets the sum."""
        from torch import distributed

        spec, group = self.model.spec, self.group.group
        stream = None
        if not spec.begins:
            stream = torch.empty(*batch.input_ids.shape, spec.d_model, device=batch.input_ids.device)
            distributed.recv(stream, distributed.get_global_rank(group, self.group.rank - 1), group)
        asked = {"targets": batch.targets} if spec.ends else {}
        out = self.model(**list_inputs(batch), stream=stream, **asked)
        if spec.ends:
            return self.group.sum_up(out.terms["loss"].float())
        distributed.send(out.hidden.contiguous(), distributed.get_global_rank(group, self.group.rank + 1), group)
        return self.group.sum_up(torch.zeros((), device=batch.input_ids.device))
