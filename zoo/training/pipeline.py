# B rows of a microbatch, T tokens, D model width
"""Train over the stages of a pipeline with torch.distributed.pipelining: microbatches pass through chunks of layers in
the order of a schedule (`zoo.distributed.pipeline_schedule`)."""

from __future__ import annotations

import functools
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn  # noqa: TID253  (imported where a pipeline is made)

from zoo.data.tokens import Batch, move_batch, split_rows
from zoo.distributed.gradients import hold_gradients, reduce_held_gradients
from zoo.distributed.group import cast_for_products
from zoo.lazy import Tensor, torch
from zoo.training.gradient import Gradient
from zoo.training.objective.base import list_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from zoo.distributed.group import RankGroup
    from zoo.distributed.pipeline_schedule import PipelineSchedule
    from zoo.model.step import Output
    from zoo.training.gradient import Autocast
    from zoo.training.objective import Objective


class ChunkModule(nn.Module):
    """A chunk of a stage's layers, as a module for torch's pipeline. The first chunk reads ids [B, T], the others the
    previous chunk's stream [B, T, D]. The last chunk returns the loss, the others the stream. Every chunk gets the
    batch's other fields. With `splits_backward`, separate passes compute the gradients of inputs and of weights.

    Under autocast the stream is float32 inside a chunk, and sent in autocast's dtype."""

    def __init__(
        self, model: Any, chunk: int, objective: Objective, autocast: Autocast, splits_backward: bool = False
    ) -> None:
        super().__init__()
        self.model, self.chunk, self.objective, self.autocast = model, chunk, objective, autocast
        self.begins, self.ends = model.spec.begins(chunk), model.spec.ends(chunk)
        self.splits_backward = splits_backward

    def start(self, weight: float, counts: Iterable[int]) -> None:
        """Reset for a new step, in which each target has this `weight`, and microbatches have these counts of
        targets."""
        self.weight, self.counts = weight, iter(counts)
        self.terms: dict[str, Tensor] = {}
        self.loads: list[Tensor] = []

    def forward(self, x: Tensor, **batch: Tensor) -> Tensor:
        inputs, count = {name: each for name, each in batch.items() if name != "targets"}, next(self.counts)
        asked: dict[str, Any] = {}
        if self.ends:
            asked = {"targets": batch["targets"], "loss": self.objective.weigh(inputs, self.weight, count)}
        out = self.run(None if self.begins else x, {**inputs, **asked})
        own = {name: loss * (self.weight * count) for name, loss in out.losses.items()}
        self.note({**out.terms, **{name: loss.detach() for name, loss in own.items()}}, out.loads)
        result: Any = out.loss if self.ends else out.hidden
        for loss in own.values():
            result = result + loss if self.ends else _attaching().apply(result, loss)
        return result.clone() if self.splits_backward else result  # torch detaches it in place, which fails for a view

    def run(self, stream: Tensor | None, inputs: dict[str, Any]) -> Output:
        """Run the chunk's layers. The returned stream (`hidden`) is ready to be sent, unless the chunk is the last."""
        with self.autocast():
            if stream is not None and torch.is_autocast_enabled(stream.device.type):
                stream = stream.float()
            out = self.model(**inputs, stream=stream, chunk=self.chunk)
            if not self.ends:
                out.hidden = cast_for_products(out.hidden)
        return out

    def note(self, terms: dict[str, Tensor], loads: list[Tensor]) -> None:
        """Add a microbatch's terms and loads to the step's."""
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.loads = [mine + more for mine, more in zip(self.loads, loads, strict=True)] if self.loads else loads


@functools.cache
def _attaching() -> Any:
    class Attaching(torch.autograd.Function):
        """Backpropagate a stage's own loss, such as a router's, together with the stream's gradient."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
            ctx.like = loss.detach()
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, g: Tensor):  # type: ignore[override]
            return g, torch.ones_like(ctx.like)

    return Attaching


class Pipeline:
    """Computes gradients over the stages of a pipeline. This process runs one stage, and `group` is the process group
    of all stages. A rank holds `tokens` tokens of a row between sub-layers, and stages send the stream in the dtype
    `sent`. With `holds`, possible if no weight is sharded, FSDP sums gradients over replicas once a step, not once a
    microbatch."""

    def __init__(
        self,
        model: Any,
        group: RankGroup,
        schedule: PipelineSchedule,
        objective: Objective,
        autocast: Autocast,
        microbatches: int,
        tokens: int,
        sent: torch.dtype,
        holds: bool = False,
    ) -> None:
        self.model, self.group, self.schedule, self.objective = model, group, schedule, objective
        self.autocast, self.microbatches, self.tokens = autocast, microbatches, tokens
        self.sent, self.holds = sent, holds
        self.chunks = schedule.list_chunks(group.rank)
        apart = schedule.splits_backward
        self.modules = [ChunkModule(model, own, objective, autocast, apart) for own in range(len(self.chunks))]
        if apart:
            for path, _ in model.towers() if model.spec.has_last else ():
                model.get_submodule(f"{path}.head" if path else "head").goes_back_twice = True
        self.names: list[str] | None = None
        self._schedules: dict[tuple[int, int], Any] = {}

    def accumulate(self, batch: Batch, whole: int) -> Gradient:
        """Accumulate the gradient of a batch's mean loss over its microbatches, as `accumulate_gradient` does."""
        device = next(self.model.parameters()).device
        moved = move_batch(batch, device)
        counts = [self.objective.targets(part) for part in split_rows(batch, self.microbatches)]
        for module in self.modules:
            module.start(1 / max(whole, 1), counts)
        inputs = {**list_inputs(moved), "targets": moved.targets}
        first = (moved.input_ids,) if self.model.spec.has_first else ()
        target = moved.targets if self.model.spec.has_last else None
        if self.holds:
            hold_gradients(self.model, keeps_weights=self.schedule.splits_backward)
        with keep_casts(device):
            self._find_schedule(*moved.input_ids.shape).step(*first, target=target, **inputs, return_outputs=False)
        if self.holds:
            reduce_held_gradients(self.model)
        loads = list(chain.from_iterable(module.loads for module in self.modules))
        return Gradient(self._share_terms(device), loads, self.objective.targets(batch))

    def _find_schedule(self, rows: int, tokens: int) -> Any:
        """Return torch's schedule for batches [rows, tokens]. Schedules are cached by shape."""
        key = (rows, tokens)
        if key not in self._schedules:
            stages = [self._make_stage(*each, rows // self.microbatches, tokens) for each in enumerate(self.chunks)]
            loss: Callable[..., Any] = lambda total, targets: total  # noqa: E731
            own: Any = stages[0] if self.schedule.kind == "1f1b" else stages
            made = find_schedule_class(self.schedule.kind)
            self._schedules[key] = made(own, self.microbatches, loss_fn=loss, scale_grads=False)
        return self._schedules[key]

    def _make_stage(self, own: int, chunk: int, rows: int, tokens: int) -> Any:
        """Make torch's stage of one of this process' chunks, for microbatches of `rows` rows."""
        from torch.distributed.pipelining import PipelineStage

        module, device = self.modules[own], next(self.model.parameters()).device
        ids = torch.empty(rows, tokens, dtype=torch.long, device=device)
        shape = (rows, self.tokens, self.model.spec.d_model)
        stream = torch.empty(shape, dtype=self.sent, device=device, requires_grad=True)
        return PipelineStage(
            module,
            chunk,
            self.schedule.n_chunks,
            device,
            input_args=ids if module.begins else stream,
            output_args=torch.empty((), device=device, requires_grad=True) if module.ends else stream,
            group=self.group.group,
        )

    def _share_terms(self, device: torch.device) -> dict[str, Tensor]:
        """Share the loss terms of all stages, by name, with every stage."""
        from torch import distributed

        own: dict[str, Tensor] = {}
        for name, value in chain.from_iterable(module.terms.items() for module in self.modules):
            own[name] = own[name] + value if name in own else value
        if self.names is None:
            found: list[Any] = [None] * self.group.size
            distributed.all_gather_object(found, [*own], group=self.group.group)
            self.names = list(dict.fromkeys(name for names in reversed(found) for name in names))
        zero = torch.zeros((), device=device)
        values = torch.stack([own.get(name, zero).detach().float() for name in self.names])
        return dict(zip(self.names, self.group.sum_up(values).unbind(), strict=True))

    def judge(self, batch: Batch, count: int, metrics: None) -> Tensor:
        """Sum the loss of a batch over its targets, without gradients, chunk after chunk. Every stage gets the sum."""
        from torch import distributed

        group, device = self.group.group, batch.input_ids.device
        total, stream = torch.zeros((), device=device), None
        for module, chunk in zip(self.modules, self.chunks, strict=True):
            before, after = (self.schedule.find_stage(each) for each in (chunk - 1, chunk + 1))
            if not module.begins and before != self.group.rank:
                shape = (*batch.input_ids.shape, self.model.spec.d_model)
                stream = torch.empty(shape, dtype=self.sent, device=device)
                distributed.recv(stream, distributed.get_global_rank(group, before), group)
            asked = {"targets": batch.targets} if module.ends else {}
            out = module.run(stream, {**list_inputs(batch), **asked})
            stream = out.hidden
            if module.ends:
                total = out.terms["loss"].float()
            elif after != self.group.rank:
                distributed.send(stream.contiguous(), distributed.get_global_rank(group, after), group)
        return self.group.sum_up(total)


def keep_casts(device: torch.device) -> AbstractContextManager[Any]:
    """Keep autocast's copies of weights until the block ends, so that all microbatches in flight share them. torch
    drops its copies at the end of the outermost autocast, which without this block is a forward pass. Outside the
    passes autocast stays off."""
    return torch.autocast(device.type, torch.bfloat16, enabled=False)


def find_schedule_class(kind: str) -> Any:
    """Return torch's class for a kind of schedule."""
    from torch.distributed import pipelining

    name = {
        "1f1b": "Schedule1F1B",
        "interleaved": "ScheduleInterleaved1F1B",
        "zero_bubble": "ScheduleInterleavedZeroBubble",
        "zero_bubble_v": "ScheduleZBVZeroBubble",
    }[kind]
    return getattr(pipelining, name)
