"""Take one optimizer step: read rows, compute their gradient, and update the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.data import Batch
from zoo.distributed.gradients import measure_gradient, sum_common_gradients
from zoo.errors import ZooError
from zoo.lazy import torch
from zoo.training.finite import LOOKED_AT, describe_what_stays, refuse_nonfinite
from zoo.training.gradient import clip_gradient
from zoo.training.log import NONFINITE
from zoo.training.optim import set_rates
from zoo.training.routing import RATE, balance_routers, describe_loads
from zoo.training.run import Run

if TYPE_CHECKING:
    from torch import Tensor


def update(run: Run) -> dict[str, Any]:
    """Take one optimizer step. Returns the loss terms and the gradient's norm, still on the device, and the rate.

    `lr` is the optimizer's rate; groups with their own rate use the same factor of the schedule.
    """
    settings, world = run.settings, run.layout.tokens
    factor = settings.schedule.factor(run.step, settings.steps)
    set_rates(run.optimizer, factor)
    batch = settings.objective.finish_batch(run, next(run.batches))
    terms, loads, _ = run.computing.accumulate(batch, count_batch(run, batch))
    terms, loads = world.sum_scalars(terms), [world.all_reduce_(each) for each in loads]
    sum_common_gradients(run.model)
    terms["grad_norm"] = measure_gradient(run.model)
    clip_gradient(list(run.model.parameters()), settings.clip, terms["grad_norm"])
    run.step += 1
    if may_update(run, terms):
        apply_update(run, loads)
    run.optimizer.zero_grad(set_to_none=True)
    return {**terms, **describe_loads(loads), "lr": settings.optim.lr * factor}


def count_batch(run: Run, batch: Batch) -> int:
    """Count a step's tokens, FLOPs and targets over all processes, and add tokens and FLOPs to the run's. Returns the
    number of targets."""
    objective = run.settings.objective
    targets = objective.targets(batch)
    flops = 0 if run.flops is None else run.counter.count(batch)
    tokens = objective.count_tokens(batch, run.settings.seq_len)
    targets, flops, tokens = run.layout.rows.sum(targets, flops, tokens)
    run.tokens += tokens
    if run.flops is not None:
        run.flops += flops
    return targets


def apply_update(run: Run, loads: list[Tensor]) -> None:
    """Update the weights, the routers' selection biases and the moving average of the weights."""
    run.optimizer.step()
    if loads:
        rate = run.settings.router_bias_rate
        balance_routers(run.model, loads, RATE if rate is None else rate)
    if run.ema is not None:
        run.ema.update(run.model, run.step)


# ---------------------------------------------------------------- updates that are skipped


def may_update(run: Run, terms: dict[str, Any]) -> bool:
    """Whether a step's gradient may change the weights. A step whose loss or gradient is not finite is counted, and its
    rows are noted.

    Waits for the device, unless `skip_nonfinite` is 0. Then no step is skipped: a CPU checks at once and raises
    ZooError; another device is checked when the metrics are written. Else raises ZooError after `skip_nonfinite`
    skipped steps in a row.
    """
    most = run.settings.skip_nonfinite
    if most == 0:
        if run.device.type == "cpu":
            refuse_nonfinite(run, terms)
        return True
    found = dict(zip(LOOKED_AT, torch.stack([terms[name].float() for name in LOOKED_AT]).tolist(), strict=True))
    if all(map(math.isfinite, found.values())):
        run.skipped_in_row = 0
        return True
    run.skipped += 1
    run.skipped_in_row += 1
    note_batch(run, found)
    name = next(name for name, value in found.items() if not math.isfinite(value))
    what = f"step {run.step}: the {LOOKED_AT[name]} is {found[name]}"
    if run.skipped_in_row >= most:
        rows = f"their rows are in {run.folder / NONFINITE}"
        raise ZooError(f"{what}, and {most} updates in a row were skipped; {rows}; {describe_what_stays(run)}")
    run.show.say(f"{what}, its update is skipped ({run.skipped_in_row} in a row; {most} end the run)")
    return False


def note_batch(run: Run, found: Mapping[str, float]) -> None:
    """Append a line about a skipped step: the values found, and the source, window and epoch of each row."""
    batches, sources = run.batches, run.batches.sources
    places = [batches.place(row) for row in range(batches.consumed - batches.batch_size, batches.consumed)]
    rows = [{"source": sources[p.source].name, "window": int(p.window), "epoch": int(p.epoch)} for p in places]
    first = batches.consumed - batches.batch_size
    line = {"step": run.step, **{name: str(value) for name, value in found.items()}, "first_row": first, "rows": rows}
    run.records.write_nonfinite(json.dumps(line))
