"""Run the training loop, the only one: update, log, save, evaluate, sample, draw; and stop when asked to."""

from __future__ import annotations

import math
import signal
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data import Batch, Batches, Prepared, hold_out
from zoo.data.tokens import Held
from zoo.errors import short
from zoo.lazy import torch
from zoo.ranks.gradients import measure_gradient, sum_common_gradients
from zoo.ranks.shards import ends_gathered
from zoo.ranks.world import ALONE, World
from zoo.report.history import RunRecord
from zoo.report.page import PAGE, write_page
from zoo.run.memory import read_peak_since, read_used_memory
from zoo.run.threads import ThreadWatch
from zoo.runs import CHECKPOINTS
from zoo.sampling.options import Sampling
from zoo.text.follow import complete
from zoo.text.prompts import Options
from zoo.training.averages import MovingAverage, find_evaluated_weights, go_back_if_due, use_weights
from zoo.training.callbacks import introduce, tell
from zoo.training.compiling import compile_if_it_pays, compile_if_stated, run_eagerly
from zoo.training.failures import FORESEEN, lost_another
from zoo.training.finite import may_update, refuse_nonfinite
from zoo.training.flops import TrainingFlops, count_run_parameters
from zoo.training.gradient import accumulate_gradient, choose_autocast, clip_gradient, move_batch, share_rows
from zoo.training.log import PICTURE, Records, draw_losses
from zoo.training.means import Means
from zoo.training.optim import set_rates
from zoo.training.precision import Computing
from zoo.training.routing import RATE, balance_routers, describe_loads
from zoo.training.sampling import choose_sampling_kernel, writes
from zoo.training.saving import finish_saving, keep_if_best, note_evaluation, save_if_due
from zoo.training.settings import TextSample, Training
from zoo.training.show import Show
from zoo.training.speed import Clock, Peak
from zoo.training.stopping import stop_if_asked, stop_on_signals

if TYPE_CHECKING:
    from torch import device as Device
    from torch.optim import Optimizer

    from zoo.training.gradient import Autocast
    from zoo.training.pipeline import Pipeline


@dataclass
class Run:
    """The state of a run: what it trains, on which data, and how far it is."""

    name: str
    folder: Path
    settings: Training
    data: Prepared
    batches: Batches
    model: Any
    optimizer: Optimizer
    records: Records
    show: Show
    peak: Peak
    watch: ThreadWatch
    world: World = ALONE
    row_world: World = ALONE  # the processes that train on rows of their own
    token_world: World = ALONE  # and those on tokens of their own
    pipeline: Pipeline | None = None  # where this process has some of the layers
    save_world: World = ALONE  # all processes, by a group of their own for checkpoints
    saving: Any = None  # a checkpoint that is being written, a Future
    ema: MovingAverage | None = None
    computing: Computing | None = None  # what computes gradients, where it is not the model itself
    free: int | None = None  # bytes of memory that were free before the model was built
    held: int | None = None  # bytes that were held then, where the peak above them can be read
    peak_memory: int | None = None  # bytes above these at the peak of the first steps
    clock: Clock = field(default_factory=Clock)
    means: Means = field(default_factory=Means)
    step: int = 0
    tokens: int = 0
    flops: int | None = 0  # of training, without evaluations; None where they are not counted
    saved: int = 0  # the step of the newest checkpoint
    last: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    evaluation_due: bool = False  # this step's evaluation is still to come
    skipped: int = 0  # updates whose loss or gradient was no number
    skipped_in_row: int = 0  # the last ones of them, with none between
    save_due: bool = False  # a checkpoint that waits for the next update that is made
    best: list[tuple[float, int]] = field(
        default_factory=list
    )  # ranks of the best evaluations that are kept, with steps
    by_class: dict[str, Any] = field(default_factory=dict)  # the newest evaluation's figures by class
    compiled: bool | None = None  # whether layers are compiled; None: it is not known yet
    asked: signal.Signals | None = None  # what asked this process to stop
    stopped: signal.Signals | None = None  # what all processes stop for

    @cached_property
    def device(self) -> Device:
        return next(self.model.parameters()).device

    @cached_property
    def held_out(self) -> list[Held]:
        settings = self.settings
        rows = (settings.batch_size // settings.accumulate, settings.seq_len)
        wanted = None if settings.eval_batches is None else settings.eval_batches * settings.batch_size
        collate = None if settings.objective.every_token else self.batches.collate
        documents = self.batches.documents
        return hold_out(self.data.held_out, *rows, wanted=wanted, documents=documents, collate=collate)

    @cached_property
    def counter(self) -> TrainingFlops:
        return TrainingFlops(self.model.whole, self.settings.objective)

    @property
    def place(self) -> dict[str, int]:
        """Where a line of metrics stands."""
        return {"step": self.step, "tokens": self.tokens, **({} if self.flops is None else {"flops": self.flops})}

    @property
    def autocast(self) -> Autocast:
        return nullcontext if self.settings.pure else choose_autocast(self.device, self.settings.arithmetic)

    @property
    def at_point(self) -> bool:
        """Whether a decay of several has just ended."""
        return self.step in self.settings.schedule.list_points(self.settings.steps)

    def due(self, every: int | None) -> bool:
        """Tell whether something that happens every `every` steps, and after the last one, happens after this step."""
        return self.step == self.settings.steps or (every is not None and self.step % every == 0)


SETTLED = 3
"""Steps after which memory has reached its peak. Evaluations, samples and pictures take some of their own later."""


def fit(run: Run) -> dict[str, Any]:
    """Train to the last step and return the outcome.

    Raises ZooError when the loss, a gradient or a weight is not finite; when asked to stop, after a checkpoint,
    KeyboardInterrupt, or Terminated where SIGTERM asked.
    """
    introduce(run)
    run.model.train()
    compile_if_stated(run)
    with run.show, stop_on_signals(run):
        if run.evaluation_due:  # of the step that the run resumes from
            measure(run)
        run.clock.start(run.tokens)
        settled = min(run.step + SETTLED, run.settings.steps)
        while run.step < run.settings.steps:
            go_back_if_due(run)
            terms = update(run)
            run.means.add(terms)
            if run.step == settled and run.held is not None:
                run.peak_memory = read_peak_since(run.device, run.held)
            run.evaluation_due = run.due(run.settings.eval_every) or run.at_point
            if run.step == 1 or run.due(run.settings.log_every) or run.evaluation_due:
                record(run, terms)
            with run.clock.pause():
                tell(run, "after_update")
                compile_if_it_pays(run)
                save_if_due(run, terms)
                stop_if_asked(run, terms)
                if run.evaluation_due:
                    measure(run)
                stop_if_asked(run, terms)  # it may have been asked meanwhile
        finish_saving(run)
    return describe_outcome(run)


class EvaluationStopped(Exception):
    """The run was asked to stop during an evaluation, which is still due when it goes on."""


def measure(run: Run) -> None:
    """Evaluate, write a sample, draw the losses, write the page. What fails is told; training goes on without it."""
    for what, work in (
        ("evaluation", evaluate),
        ("sample", write_sample),
        *((("picture", draw_picture), ("page", draw_page)) if run.world.main else ()),
    ):
        try:
            with use_weights(run.model, find_evaluated_weights(run)):
                work(run)
        except EvaluationStopped:
            run.model.train()
            return
        except FORESEEN as error:
            if run.records.failed or lost_another(error):  # the run's own record would lack a line; or no step follows
                raise
            run.show.say(f"step {run.step}: no {what}, found {short(error)} (training goes on)")
        run.model.train()
    keep_if_best(run)
    note_evaluation(run)
    if not run.evaluation_due:  # it did not fail
        tell(run, "after_eval")


# ---------------------------------------------------------------- one update


def update(run: Run) -> dict[str, Any]:
    """Take one optimizer step. Returns the terms of its loss and the gradient's norm, still on the device.

    `lr` is the optimizer's own; groups with a rate of their own have that times the same factor.
    """
    settings = run.settings
    factor = settings.schedule.factor(run.step, settings.steps)
    set_rates(run.optimizer, factor)
    batch = next(run.batches)
    count = agree(run, batch)
    model, autocast = (run.model, run.autocast) if run.computing is None else (run.computing.refresh(), nullcontext)
    if run.pipeline is not None:
        terms, loads, _ = run.pipeline.accumulate(batch, count)
    else:
        terms, loads, _ = accumulate_gradient(model, settings.objective, batch, settings.accumulate, autocast, count)
    terms, loads = run.token_world.add_up(terms), [run.token_world.add_up_(each) for each in loads]
    sum_common_gradients(run.model)
    terms["grad_norm"] = measure_gradient(run.model)
    clip_gradient(list(run.model.parameters()), settings.clip, terms["grad_norm"])
    run.step += 1
    if may_update(run, terms):
        apply_update(run, loads)
    run.optimizer.zero_grad(set_to_none=True)
    return {**terms, **describe_loads(loads), "lr": settings.optim.lr * factor}


def agree(run: Run, batch: Batch) -> int:
    """Count a step's tokens, FLOPs and targets over all processes. Returns the targets."""
    objective = run.settings.objective
    targets = objective.targets(batch)
    flops = 0 if run.flops is None else run.counter.count(batch, targets)
    tokens = objective.count_tokens(batch, run.settings.seq_len)
    targets, flops, tokens = run.row_world.sum(targets, flops, tokens)
    run.tokens += tokens
    if run.flops is not None:
        run.flops += flops
    return targets


def apply_update(run: Run, loads: list[Any]) -> None:
    """Change what is trained: the weights, the routers' biases and the average of the weights."""
    run.optimizer.step()
    if loads:
        rate = run.settings.router_bias_rate
        balance_routers(run.model, loads, RATE if rate is None else rate)
    if run.ema is not None:
        run.ema.update(run.model, run.step)


# ---------------------------------------------------------------- what is measured


def record(run: Run, terms: dict[str, Any]) -> None:
    """Write a line of metrics, means over the steps since the line before. Waits for the device."""
    refuse_nonfinite(run, terms)
    values = run.means.take()
    speed = run.clock.lap(run.tokens)
    measured = {
        "skipped": run.skipped,
        "tokens_per_second": round(speed, 1),
        "mfu": compute_mfu(run, speed),
        "memory": read_used_memory(run.device),
    }
    run.records.write_line(**run.place, **values, **measured)
    run.last |= values
    left = (run.settings.steps - run.step) * run.tokens / run.step
    run.show.step(run.step, {**values, **measured}, left / run.clock.pace)
    with run.clock.pause():
        follow_pace(run, speed)


def compute_mfu(run: Run, speed: float) -> float | None:
    """Compute the MFU at so many tokens a second; None where that lies above the measured peak, which then was measured
    too low, and where the useful FLOPs are not counted: with frozen weights, and where much of a row is padding."""
    if run.flops is None or run.settings.objective.reads_labels:
        return None
    share = run.peak.share(speed * run.flops / run.tokens / run.world.size)
    return None if share is None else round(share, 4)


def follow_pace(run: Run, speed: float) -> None:
    """Choose the number of threads again where the pace has fallen, or may have recovered, and say so."""
    if choice := run.watch.follow(speed):
        run.show.say(f"computes from step {run.step + 1} on with {choice}")
        run.peak = run.peak.again(run.device, run.settings.arithmetic)


def evaluate(run: Run) -> None:
    """Measure the validation loss and write it as a line of metrics, of a mix also that of each source.

    Bits per byte divide by the bytes of the targets that were scored. An end of text is scored and has no bytes.
    """
    run.peak = run.peak.again(run.device, run.settings.arithmetic)
    metrics = run.settings.objective.open_metrics()
    found = [(each, *measure_validation_loss(run, each.batches, metrics)) for each in run.held_out]
    nats, targets = sum(nats for _, nats, _ in found), sum(targets for _, _, targets in found)
    values = name_losses("", nats, targets, sum(each.n_bytes or 0 for each, _, _ in found))
    if len(found) > 1:
        for each, nats, targets in found:
            values |= name_losses(f"/{each.name}", nats, targets, each.n_bytes)
    measured = {} if metrics is None else {f"val_{name}": value for name, value in metrics.compute().items()}
    run.by_class = {} if metrics is None else metrics.describe()
    values |= measured
    run.records.write_line(**run.place, **count_trained(run), **values)
    run.last |= values
    run.evaluation_due = False
    run.show.evaluation(run.step, values["val_loss"], values.get("bits_per_byte"), measured)


def count_trained(run: Run) -> dict[str, int]:
    """Count, where a decay of several has just ended, the tokens that the weights were trained on: those of the
    decays before it are left out where the run went back behind them."""
    if not run.at_point:
        return {}
    kept = run.step - run.settings.schedule.count_left_behind(run.step, run.settings.steps)
    return {"trained_tokens": round(run.tokens * kept / run.step)}  # updates are equal in size


def name_losses(suffix: str, nats: float, targets: int, n_bytes: int | None) -> dict[str, float]:
    """Name the mean loss over targets and, where the bytes of their text are known, the bits per byte."""
    bits = {f"bits_per_byte{suffix}": nats / math.log(2) / n_bytes} if n_bytes else {}
    return {f"val_loss{suffix}": nats / targets, **bits}


def write_sample(run: Run) -> None:
    """Let the model continue the prompt, where the config has one and the model writes."""
    if isinstance(sample := run.settings.sample, TextSample) and writes(run.model.spec) and run.pipeline is None:
        with ends_gathered(run.model):  # every process writes it, as each may hold a part of the weights
            text = sample.prompt + continue_prompt(run, sample)
        run.records.write_sample(run.step, text)
        run.show.sample(text)


def draw_picture(run: Run) -> None:
    """Draw the losses so far."""
    draw_losses(run.records.lines, run.name, run.folder / PICTURE)


def draw_page(run: Run) -> None:
    """Write the page of the run so far."""
    write_page(RunRecord(run.folder), "running")


def draw_last_page(run: Run, status: str) -> None:
    """Write the page of a run that ended. What fails is told, as the run itself is whole."""
    try:
        write_page(RunRecord(run.folder), status)
    except FORESEEN as error:
        run.show.say(f"{run.folder / PAGE}: cannot be written, found {short(error)}")


def measure_validation_loss(run: Run, batches: list[Batch], metrics: Any = None) -> tuple[float, int]:
    """Sum the loss over batches, in eval mode: of tokens and classes the negative log-likelihood, in nats. Returns it
    and the number of targets. `metrics`, where an objective has some, get the results too."""
    objective, targets = run.settings.objective, 0
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    world = run.token_world if metrics is None else ALONE  # figures of rows need all of them
    run.model.eval()
    try:
        for batch in batches:
            if run.asked and run.world.size == 1:  # several would have to agree on it for each batch
                raise EvaluationStopped
            batch, counts = share_rows(batch, world)
            count = objective.targets(batch)
            with torch.no_grad(), run.autocast():
                moved = move_batch(batch, run.device)
                found = (
                    objective.judge(run.model, moved, count, metrics)
                    if run.pipeline is None
                    else run.pipeline.judge(moved)
                )
            total += found * counts
            targets += count * counts
    finally:
        run.model.train()
    return float(world.add_up_(total)), world.sum(targets)[0]


def continue_prompt(run: Run, sample: TextSample) -> str:
    """Generate what follows the prompt. The seed is the same each time, and training's random numbers are not used."""
    sampling = Sampling(temperature=sample.temperature, seed=run.settings.seed)
    kernel, _ = choose_sampling_kernel(run.model.spec, run.settings, run.device)
    options = Options(max_new_tokens=sample.tokens, sampling=sampling)
    with run_eagerly(run.compiled is True):  # the length grows with each token, and each would compile anew
        return "".join(complete(run.model, run.data.tokenizer, sample.prompt, options, kernel=kernel))


# ---------------------------------------------------------------- how it ends


def describe_outcome(run: Run) -> dict[str, Any]:
    """Describe a finished run as plain data. Figures of an evaluation that failed are None."""
    params, trained = count_run_parameters(run)
    return {
        "status": "done",
        "model": run.name,
        "run": str(run.folder),
        "checkpoint": str(run.folder / CHECKPOINTS / f"step-{run.step:06}"),
        "params": params,
        "trained": trained,
        "steps": run.step,
        "tokens": run.tokens,
        "flops": run.flops,
        **({"skipped": run.skipped} if run.skipped else {}),
        "train_loss": run.last.get("loss"),
        "val_loss": run.last.get("val_loss"),
        "bits_per_byte": run.last.get("bits_per_byte"),
        **{name: run.last.get(name) for name in run.settings.objective.measures},
        "seconds": round(run.clock.seconds, 3),
        "tokens_per_second": round(run.tokens / run.clock.seconds, 1),
        "mfu": compute_mfu(run, run.tokens / run.clock.seconds),
        "peak": str(run.peak),
        **({} if run.peak_memory is None else {"peak_memory": run.peak_memory}),
        **run.by_class,
    }
