"""Runs pipelines in the ranks that forked_processes.py starts, with the arguments OUT CASES, CASES a JSON file of
cases.

Each case is `what` (gradients, or idle), the name of a model and its overrides, the fields of a mesh, and the number of
microbatches. What each process found is written to OUT/RANK.json.
"""

from __future__ import annotations

import functools
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from support.tensor_parallel_ranks import randomise
from zoo.compose import load
from zoo.data import Batch
from zoo.distributed.gradients import measure_gradient, sum_common_gradients
from zoo.distributed.group import RankGroup
from zoo.distributed.meeting import join_processes
from zoo.distributed.mesh import Mesh
from zoo.distributed.world import read_world
from zoo.model.init import initialise
from zoo.run.builder import build
from zoo.training.gradient import accumulate_gradient
from zoo.training.layout import ProcessGroups
from zoo.training.objective.causal import NextToken
from zoo.training.pipeline import Pipeline

TOKENS = 16
UNIT = 0.25
"""Seconds that a layer sleeps forward, and in each half of its backward pass."""


def make_batch(rows: int, vocab_size: int) -> Batch:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(vocab_size, (rows, TOKENS + 1), generator=draw)
    return Batch(**{**dict.fromkeys(Batch._fields), "input_ids": ids[:, :-1], "targets": ids[:, 1:].contiguous()})


def open_pipeline(spec: Any, layout: ProcessGroups, microbatches: int) -> Pipeline:
    model = build(layout.take_part(spec), device="meta")
    layout.divide(model, spec)
    initialise(model.to_empty(device="cpu"), 0)
    tokens = TOKENS // layout.mesh.tp
    how = (NextToken(), nullcontext, microbatches, tokens, torch.float32)
    return Pipeline(model, RankGroup(layout.stages), layout.mesh.pipeline, *how)


# ---------------------------------------------------------------- gradients


def compare_gradients(spec: Any, layout: ProcessGroups, microbatches: int) -> dict[str, Any]:
    """Hold the loss and the gradients of a batch against those of one process."""
    whole = build(spec)
    randomise(whole)
    batch = make_batch(2 * microbatches, spec.vocab_size)
    count = batch.targets.numel()
    there = accumulate_gradient(whole, NextToken(), batch, microbatches, nullcontext, count)
    pipeline = open_pipeline(spec, layout, microbatches)
    mine = pipeline.model
    take, held = mine.shares.take_part, mine.state_dict()
    own = {name: take(name, each, held[name]) for name, each in whole.state_dict().items() if name in held}
    mine.load_state_dict(own)
    here = pipeline.accumulate(batch, count)
    sum_common_gradients(mine)
    expected = {name: each.grad for name, each in whole.named_parameters()}
    norm = torch.stack([each.double().norm() for each in expected.values() if each is not None]).norm()
    worst, at = 0.0, ""
    for name, each in mine.named_parameters():
        if (wanted := expected[name]) is None:
            continue
        found = torch.zeros_like(each) if each.grad is None else each.grad
        off = float((found - take(name, wanted, each)).norm() / max(wanted.norm(), 1e-3 * norm))
        worst, at = max((worst, at), (off, name))
    with torch.no_grad():
        judged = float(pipeline.judge(batch, count, None))
        alone = float(whole(batch.input_ids, targets=batch.targets).terms["loss"])
    return {
        "loss": abs(float(here.terms["loss"]) - float(there.terms["loss"])),
        "loads": all(torch.equal(a, b) for a, b in zip(own_loads(there.loads, pipeline), here.loads, strict=True)),
        "judged": abs(judged - alone) / count,
        "gradient": worst,
        "at": at,
        "norm": abs(float(measure_gradient(mine)) / float(norm) - 1),
        "parameters": sum(each.numel() for each in mine.parameters()),
    }


def own_loads(loads: list[Any], pipeline: Pipeline) -> list[Any]:
    """Take those of a stage's own layers from what all mixtures of a model counted."""
    whole = pipeline.model.whole
    mixtures = [number for number, kind in enumerate(whole.pattern) if whole.blocks[kind].ffn.kind == "moe"]
    own = [each for chunk in pipeline.model.spec.chunks for each in range(*chunk)]
    return [loads[mixtures.index(each)] for each in own if each in mixtures]


# ---------------------------------------------------------------- idle time


class SleepingLayer(nn.Module):
    """Stands for a layer: x [B, T, D] → [B, T, D]. It sleeps where that would compute, so that processes need no
    processor of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, step: Any) -> torch.Tensor:
        time.sleep(UNIT)
        return Sleeping.apply(x) * Sleeping.apply(self.weight)  # type: ignore[operator]


class Sleeping(torch.autograd.Function):
    """What the gradient of an input, or of a weight, takes its time to pass through."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        time.sleep(UNIT)
        return g


def note_passes(pipeline: Pipeline, batch: Batch) -> list[float]:
    """Let a pipeline note how long each of its passes takes, which torch runs once what it reads has come."""
    noted: list[float] = []

    def timed(run: Any) -> Any:
        @functools.wraps(run)
        def called(*args: Any, **named: Any) -> Any:
            before = time.perf_counter()
            result = run(*args, **named)
            noted.append(time.perf_counter() - before)
            return result

        return called

    schedule = pipeline._find_schedule(*batch.input_ids.shape)
    for stage in getattr(schedule, "_stages", None) or [schedule._stage]:
        for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
            setattr(stage, name, timed(getattr(stage, name)))
    return noted


def measure_idle(spec: Any, layout: ProcessGroups, microbatches: int) -> dict[str, Any]:
    """Measure the share of a step in which this process is in no pass; the least of some steps, as what else the
    machine does adds to it."""
    pipeline = open_pipeline(spec, layout, microbatches)
    blocks = pipeline.model.blocks
    for name in list(blocks._modules):
        blocks._modules[name] = SleepingLayer()
    batch, found = make_batch(microbatches, spec.vocab_size), []
    noted = note_passes(pipeline, batch)
    for _ in range(3):
        noted.clear()
        distributed.barrier()
        before = time.perf_counter()
        pipeline.accumulate(batch, batch.targets.numel())
        distributed.barrier()
        found.append(1 - sum(noted) / (time.perf_counter() - before))
    return {"idle": min(found[1:]), "busy": sum(noted)}


def main(out: str, cases: str) -> None:
    world = read_world()
    join_processes(world, "cpu")
    found = []
    for what, model, overrides, fields, microbatches in json.loads(Path(cases).read_text()):
        torch.manual_seed(0)
        layout = ProcessGroups.open(Mesh(**fields), world, torch.device("cpu"), TOKENS)
        run = {"gradients": compare_gradients, "idle": measure_idle}[what]
        found.append(run(load(model, overrides), layout, microbatches))
        if world.main:
            print(model, fields, found[-1], flush=True)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(found))
