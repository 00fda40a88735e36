"""Take one optimizer step: read rows, compute their gradient, and update the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.data import Batch
from zoo.distributed.gradients import measure_gradient, sum_common_gradients
from zoo.lazy import Tensor, torch
from zoo.training.finite import LOOKED_AT, count_skipped, refuse_nonfinite
from zoo.training.gradient import clip_gradient
from zoo.training.optim import set_rates
from zoo.training.routing import RATE, balance_routers, describe_loads
from zoo.training.run import CountedBatch, Run, UncountedStep


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
    update_if_finite(run, terms, loads)
    run.optimizer.zero_grad(set_to_none=True)
    count_ahead(run)
    return {**terms, **describe_loads(loads), "lr": settings.optim.lr * factor}


def count_batch(run: Run, batch: Batch) -> int:
    """Count a step's tokens, FLOPs and targets over all processes, and add tokens and FLOPs to the run's. Returns the
    number of targets."""
    ahead, run.counted_ahead = run.counted_ahead, None
    known = ahead is not None and ahead.consumed == run.batches.consumed  # or the run went back
    targets, flops, tokens = (ahead.read if ahead and known else begin_count(run, batch))()
    run.tokens += tokens
    if run.flops is not None:
        run.flops += flops
    return targets


def begin_count(run: Run, batch: Batch) -> Callable[[], list[int]]:
    """Begin to count a batch's targets, FLOPs and tokens over all processes. Returns the function that waits for them.
    If every token is a target, all processes have equal counts and exchange nothing."""
    objective, rows = run.settings.objective, run.layout.rows
    flops = 0 if run.flops is None or run.counter is None else run.counter.count(batch)
    counts = objective.targets(batch), flops, objective.count_tokens(batch, run.settings.seq_len)
    if objective.every_token and batch.documents is None:
        return lambda: [rows.size * each for each in counts]
    return rows.begin_sum(*counts)


def count_ahead(run: Run) -> None:
    """Begin to count the next step's batch, if it is read ahead: the processes exchange their counts while the device
    computes the present step, and do not wait for one another in the next step."""
    ahead = run.batches.ahead
    batch = None if ahead is None or run.step == run.settings.steps else ahead.peek()
    if batch is not None:
        run.counted_ahead = CountedBatch(run.batches.consumed + run.batches.batch_size, begin_count(run, batch))


def apply_update(run: Run, loads: list[Tensor], skipped: Tensor | None = None) -> None:
    """Update the weights, the routers' selection biases and the moving average of the weights. `skipped` is a number on
    the device, which the host does not read: if it is 1, nothing changes."""
    if skipped is None:
        run.optimizer.step()
    else:
        run.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # the protocol of torch's GradScaler
        run.optimizer.step()
        del run.optimizer.found_inf  # type: ignore[attr-defined]
    if loads:
        rate = run.settings.router_bias_rate
        balance_routers(run.model, loads, RATE if rate is None else rate, skipped)
    if run.ema is not None:
        run.ema.update(run.model, run.step, skipped)


# ---------------------------------------------------------------- updates that are skipped


def update_if_finite(run: Run, terms: dict[str, Any], loads: list[Tensor]) -> None:
    """Update the weights if the loss and the gradient's norm are finite.

    If the optimizer can skip an update itself, the device decides and the host does not wait; the host counts skipped
    updates when it needs their number (`count_skipped`). Otherwise, and on a CPU, the host decides. With
    `skip_nonfinite` 0 no update is skipped: a CPU checks at once and raises ZooError; another device is checked when
    the metrics are written.
    """
    if run.settings.skip_nonfinite == 0:
        if run.device.type == "cpu":
            refuse_nonfinite(run, terms)
        apply_update(run, loads)
        return
    found = torch.stack([terms[name].detach().float() for name in LOOKED_AT])
    run.uncounted.append(UncountedStep(run.step, run.batches.consumed, found))
    if decides_on_device(run):
        apply_update(run, loads, (~found.isfinite()).any().float())
        return
    count_skipped(run)
    if not run.skipped_in_row:
        apply_update(run, loads)


def decides_on_device(run: Run) -> bool:
    """Whether the device can skip an update: the optimizer must take `found_inf`, as torch's fused AdamW does."""
    return run.device.type != "cpu" and getattr(run.optimizer, "_step_supports_amp_scaling", False)
