"""Forecast the cost of a job before it runs: price its config, and time a few of its training steps."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.costs.cache_sizes import kv_cache
from zoo.costs.elementwise_flops import count_elementwise
from zoo.costs.params import count_parameters
from zoo.costs.setup import Setup
from zoo.costs.tuning import apply_tuning
from zoo.costs.update_flops import optimizer_flops
from zoo.errors import ConfigError, ZooError, short
from zoo.jobs.sweep import hash_pace
from zoo.training.planning import TrainingPlan
from zoo.training.run_flops import price_step

if TYPE_CHECKING:
    from zoo.training.run import Run

STEPS = 3
"""The number of timed steps. One untimed step comes before, because the first calls take longer."""

MATCHED_STEPS = 20
"""The number of timed steps if arms are matched in time: after STEPS steps the noise is far above the tolerance of 1
%."""


@dataclass(frozen=True)
class Price:
    """The cost of a run, computed from its config. `flops` counts all forward and backward passes, with a teacher's
    forward passes; it is None if the config does not determine them. `optimizer_flops` counts all updates.
    `cache_bytes` is the KV cache of one row of the training length. `peak_memory`, in bytes, is None if activations are
    unknown or no pass was traced."""

    params: int
    active: int
    non_embedding: int
    steps: int
    tokens: int
    flops: int | None
    optimizer_flops: int
    cache_bytes: int | None
    peak_memory: int | None

    @property
    def all_flops(self) -> int | None:
        """FLOPs of the passes and of the updates."""
        return None if self.flops is None else self.flops + self.optimizer_flops


def price_run(planned: TrainingPlan, *, cuda: bool = False, memory: bool = True) -> Price:
    """Price a run. With `cuda` the peak memory is computed for CUDA kernels. Without `memory` no pass is traced, and
    the peak memory is None."""
    from zoo.training.memory_fit import describe_tuning, price_training, take_share

    settings, spec = planned.settings, planned.spec
    counted, step, share = count_parameters(spec), price_step(settings, spec), take_share(settings)
    cache = kv_cache(spec, Setup(context=settings.seq_len))
    rows, tuned = share.batch_size // share.accumulate, apply_tuning(spec, describe_tuning(settings, spec))
    return Price(
        params=counted["total"],
        active=counted["active"],
        non_embedding=counted["non_embedding"],
        steps=settings.steps,
        tokens=settings.steps * settings.batch_size * settings.seq_len,
        flops=None if step is None else settings.steps * step,
        optimizer_flops=settings.steps * optimizer_flops(spec, settings.optim.kind, tuned),
        cache_bytes=None if cache is None else cache["bytes"],
        peak_memory=price_training(share, spec, rows, cuda=cuda)["peak"] if memory else None,
    )


def price_elementwise(planned: TrainingPlan) -> int | None:
    """Count the elementwise operations of all forward passes of a run; None for a pass that cannot be traced."""
    settings, each_token = planned.settings, count_elementwise(planned.spec)
    return None if each_token is None else round(settings.steps * settings.batch_size * settings.seq_len * each_token)


@dataclass(frozen=True)
class Timing:
    """Measured seconds on this machine: of a step, of evaluating one batch, and of the start-up with the first step."""

    step: float
    evaluation: float
    start: float
    batches: int
    """The number of batches of an evaluation."""
    flops: float | None
    """FLOPs of a step; None if they are not counted."""
    error: float = 0.0
    """The relative standard error of `step`."""

    def predict_training(self, planned: TrainingPlan) -> float:
        """Predict the seconds of a run's steps (`seconds` in its result.json)."""
        return planned.settings.steps * self.step

    def predict_whole(self, planned: TrainingPlan) -> float:
        """Predict the seconds of a run with its start and its evaluations, without checkpoints, samples and plots."""
        steps, every = planned.settings.steps, planned.settings.eval_every
        evaluated = {
            steps,
            *planned.settings.schedule.list_points(steps),
            *range(every or steps, steps + 1, every or steps),
        }
        return self.start + self.predict_training(planned) + len(evaluated) * self.batches * self.evaluation


def time_steps(planned: TrainingPlan, steps: int = STEPS) -> Timing:
    """Time some training `steps` and the evaluation of a batch, in a temporary folder. Raises ZooError if the run
    cannot start, or its loss is not finite."""
    from zoo.distributed.world import ALONE
    from zoo.report.progress import Show
    from zoo.run.machine_memory import release_memory
    from zoo.run.threads import keep_threads
    from zoo.training.building import build_run, prepare_device_and_data

    quiet = Show(planned.settings.steps, quiet=True)
    with keep_threads(), tempfile.TemporaryDirectory() as folder:
        planned, device, data = prepare_device_and_data(planned, quiet, ALONE)
        began = time.perf_counter()
        run = build_run(planned, Path(folder), device, data, quiet)
        try:
            return _time(run, began, steps)
        finally:
            run.records.close("done")
            run.gauges.watch.end()
            del run
            release_memory()


def _time(run: Run, began: float, steps: int) -> Timing:
    from zoo.training.compiling import compile_if_stated
    from zoo.training.metric_lines import record, settle_line
    from zoo.training.update import update
    from zoo.training.validation import measure_validation_loss

    run.settings.objective.prepare_run(run, lambda: run.model, steps + 1)
    run.model.train()
    compile_if_stated(run)
    seconds = []
    run.gauges.clock.start(run.tokens)
    for _ in range(steps + 1):
        before = run.gauges.clock.seconds
        terms = update(run)
        run.means.add(terms)
        record(run, terms)
        settle_line(run)
        seconds.append(run.gauges.clock.seconds - before)
    start = time.perf_counter() - began - sum(seconds[1:])
    step = statistics.median(seconds[1:])
    batches = sum(len(held.batches) for held in run.held_out)
    lap = 0.0
    for _ in range(2):  # the first call takes longer
        began = time.perf_counter()
        measure_validation_loss(run, run.held_out[0].batches[:1], run.settings.objective.open_metrics())
        lap = time.perf_counter() - began
    flops = None if run.flops is None else run.flops / run.step
    # the standard error of a median is √(π/2) times that of a mean
    error = math.sqrt(math.pi / 2 / steps) * statistics.stdev(seconds[1:]) / step
    return Timing(step=step, evaluation=lap, start=start, batches=batches, flops=flops, error=error)


@dataclass(frozen=True)
class Forecast:
    """The forecast of a job. Without a timing its seconds are unknown, and `fault` may have the reason. `refused` says
    that the job would not start, because of a ConfigError."""

    price: Price
    timing: Timing | None = None
    fault: str | None = None
    refused: bool = False

    def to_dict(self, planned: TrainingPlan) -> dict[str, Any]:
        """Return the figures of a job as plain data, keyed as in its result.json."""
        price, timing = self.price, self.timing
        flops = price.flops
        if flops is None and timing is not None and timing.flops is not None:
            flops = round(price.steps * timing.flops)
        return {
            **asdict(price),
            "flops": flops,
            "seconds": None if timing is None else timing.predict_training(planned),
            "wall_seconds": None if timing is None else timing.predict_whole(planned),
        }


class Forecaster:
    """Prices and times jobs. Jobs with equal steps (`hash_pace`) are timed once."""

    def __init__(self, *, measure: bool, steps: int = STEPS) -> None:
        self.measure, self.steps = measure, steps
        self.known: dict[tuple[str, int], Forecast] = {}
        self.timed: dict[str, Timing | str] = {}

    def forecast(self, planned: TrainingPlan) -> Forecast:
        """Forecast a job: price it, then time it if `measure` is set and the job fits into memory."""
        key = hash_pace(planned), planned.settings.steps
        if key not in self.known:
            self.known[key] = self._forecast(planned, key[0])
        return self.known[key]

    def _forecast(self, planned: TrainingPlan, pace: str) -> Forecast:
        from zoo.run.builder import pick_device
        from zoo.run.machine_memory import read_free_memory
        from zoo.training.memory_fit import check_memory, take_share

        device = pick_device(planned.settings.device)
        cuda = device.type == "cuda"
        price = price_run(planned, cuda=cuda)
        try:
            line = check_memory(take_share(planned.settings), planned.spec, read_free_memory(device), cuda=cuda)
            if line is not None or not self.measure:
                return Forecast(price, fault=line)
            if pace not in self.timed:
                self.timed[pace] = time_steps(planned, self.steps)
        except ConfigError as error:
            return Forecast(price, fault="; ".join(error.faults), refused=True)
        except ZooError as error:
            self.timed[pace] = f"its steps were not timed, {short(error)}"
        timed = self.timed[pace]
        return Forecast(price, fault=timed) if isinstance(timed, str) else Forecast(price, timed)
