"""The training loop, the only one: updates, evaluations, checkpoints, and what happens when it is stopped."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.store import Resumable, save_run
from zoo.costs import price
from zoo.data import Batch, Batches, Prepared
from zoo.data.tokens import evaluation_batches, to_batch
from zoo.errors import ZooError
from zoo.generation.sample import Sampling
from zoo.generation.text import complete
from zoo.lazy import torch
from zoo.run.threads import ThreadWatch
from zoo.runs import CHECKPOINTS
from zoo.training.log import PICTURE, Records, draw
from zoo.training.objective import Objective
from zoo.training.sampling import choose_sampling_kernel
from zoo.training.settings import TextSample, Training
from zoo.training.show import Show
from zoo.training.speed import Clock, Peak

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from torch.optim import Optimizer

    from zoo.training.objective import Autocast


@dataclass
class Run:
    """A run at work: what it trains, on what, and how far it is."""

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
    clock: Clock = field(default_factory=Clock)
    step: int = 0
    tokens: int = 0
    saved: int = 0  # the step of the newest checkpoint
    last: dict[str, float] = field(default_factory=dict)  # what was measured last, by metric
    stopped: bool = False

    @cached_property
    def device(self) -> Device:
        return next(self.model.parameters()).device

    @cached_property
    def validation(self) -> list[Batch]:
        settings, data = self.settings, self.data
        rows = (settings.batch_size // settings.accumulate, settings.seq_len)
        wanted = None if settings.eval_batches is None else settings.eval_batches * settings.batch_size
        return held_out(data, *rows, wanted=wanted, documents=self.batches.documents)

    @cached_property
    def flops_per_token(self) -> int:
        return price(self.model.spec, context=self.settings.seq_len)["flops"]["train"]

    @property
    def autocast(self) -> Autocast:
        return autocast(self.device, self.settings.arithmetic)

    def due(self, every: int | None) -> bool:
        """Whether something that happens so often, and at the end, happens after this step."""
        return self.step == self.settings.steps or (every is not None and self.step % every == 0)


def fit(run: Run) -> dict[str, Any]:
    """Trains to the last step and gives what came of it.

    Raises ZooError when the loss is no number any more, and KeyboardInterrupt, after a checkpoint, when asked to stop.
    """
    run.model.train()
    if run.settings.compile:
        compile_blocks(run.model)
    with run.show, stopping(run):
        run.clock.start(run.tokens)
        while run.step < run.settings.steps:
            terms = update(run)
            if run.step == 1 or run.due(run.settings.log_every) or run.due(run.settings.eval_every):
                record(run, terms)
            with run.clock.pause():
                after(run, terms)
    return outcome(run)


def after(run: Run, terms: dict[str, Any]) -> None:
    """What may follow an update."""
    if run.due(run.settings.eval_every):
        evaluate(run)
    if run.stopped or run.due(run.settings.save_every):
        refuse_nonfinite(run, terms)
        save(run)
    if run.stopped and run.step < run.settings.steps:
        run.show.say(f"stopped after step {run.step}; `zoo train --resume {run.folder}` goes on from there")
        raise KeyboardInterrupt


# ---------------------------------------------------------------- one update


def update(run: Run) -> dict[str, Any]:
    """One step of the optimizer; gives the terms of its loss and the gradient's norm, still on the device."""
    settings = run.settings
    lr = settings.optim.lr * settings.schedule.factor(run.step, settings.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    batch = next(run.batches)
    terms = accumulate(run.model, settings.objective, batch, settings.accumulate, run.autocast)
    terms["grad_norm"] = clip(list(run.model.parameters()), settings.clip)
    run.step += 1
    run.tokens += batch.input_ids.numel()
    if run.device.type == "cpu":  # elsewhere it would wait for the device at each step: `record` looks
        refuse_nonfinite(run, terms)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return {**terms, "lr": lr}


def accumulate(model: Any, objective: Objective, batch: Batch, parts: int, autocast: Autocast) -> dict[str, Any]:
    """Adds the gradient of the mean over a batch's targets, a part of its rows at a time; gives the terms of the loss.

    Each part's sum is divided by the targets of the whole, so that parts with fewer targets weigh less; a model's own
    losses, which are means, are weighted by the part's share.
    """
    device = next(model.parameters()).device
    total = max(objective.targets(batch), 1)
    terms: dict[str, Tensor] = {}
    for part in split(batch, parts):
        share = objective.targets(part) / total
        found = objective.backward(model, to(part, device), 1 / total, share, autocast)
        terms = {name: terms[name] + value if name in terms else value for name, value in found.items()}
    return terms


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch's rows in equal parts."""
    size = len(batch.input_ids) // parts
    return (each_of(batch, lambda rows, part=part: rows[part * size : (part + 1) * size]) for part in range(parts))


def to(batch: Batch, device: Device) -> Batch:
    """The batch on a device, without waiting for the copy."""
    if device.type == "cuda":
        return each_of(batch, lambda rows: rows.pin_memory().to(device, non_blocking=True))
    return each_of(batch, lambda rows: rows.to(device))


def each_of(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor of it changed."""
    documents = None if batch.documents is None else change(batch.documents)
    return Batch(change(batch.input_ids), change(batch.targets), documents)


def clip(parameters: list[Any], most: float | None) -> Tensor:
    """The gradient's norm; where it is above `most` the gradient is scaled down to that."""
    norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    looks = norm.device.type == "cpu"  # where that costs less than a product with 1, as it waits for no device
    if most is not None and not (looks and norm <= most):
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def autocast(device: Device, precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """What forward passes run under."""
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16)


def compile_blocks(model: Any) -> None:
    """Compiles each layer by itself: equal layers share one compilation, so its time does not grow with depth."""
    for block in model.blocks:
        block.compile(dynamic=False)


def refuse_nonfinite(run: Run, terms: dict[str, Any]) -> None:
    """Raises ZooError when the loss or the gradient is no number any more."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(value := float(terms[name])):
            kept = f"the checkpoint of step {run.saved} is whole" if run.saved else "no checkpoint was written"
            what = "loss" if name == "loss" else "gradient's norm"
            would = "a lower optim.lr, or a longer schedule.warmup"
            raise ZooError(f"step {run.step}: the {what} is {value}; {kept} ({would})")


# ---------------------------------------------------------------- what is measured


def record(run: Run, terms: dict[str, Any]) -> None:
    """A line of metrics for the step just done. Waits for the device."""
    refuse_nonfinite(run, terms)
    values = {name: float(value) for name, value in terms.items()}
    speed = run.clock.lap(run.tokens)
    mfu = share_of_peak(run, speed)
    run.records.write(step=run.step, tokens=run.tokens, **values, tokens_per_second=round(speed, 1), mfu=mfu)
    run.last |= values
    left = (run.settings.steps - run.step) * run.tokens / run.step
    run.show.step(run.step, values["loss"], speed, mfu, left / run.clock.pace)
    with run.clock.pause():
        follow_pace(run, speed)


def share_of_peak(run: Run, speed: float) -> float | None:
    """MFU at so many tokens a second; None where the measured peak is no yardstick, as it lies below that."""
    share = run.peak.share(speed * run.flops_per_token)
    return None if share is None else round(share, 4)


def follow_pace(run: Run, speed: float) -> None:
    """Chooses the number of threads again where the pace has fallen, or may have recovered, and says so."""
    if run.settings.compile:  # compiled code holds the number of threads: with another it would compile anew
        return
    if choice := run.watch.follow(speed):
        run.show.say(f"computes from step {run.step + 1} on with {choice}")
        run.peak = run.peak.again(run.device, run.settings.arithmetic)


def evaluate(run: Run) -> None:
    """Validation loss, a sample of text and the picture."""
    run.peak = run.peak.again(run.device, run.settings.arithmetic)
    loss = validation_loss(run)
    bits = loss / math.log(2) * (len(run.data.validation) - 1) / run.data.validation.n_bytes
    run.records.write(step=run.step, tokens=run.tokens, val_loss=loss, bits_per_byte=bits)
    run.last |= {"val_loss": loss, "bits_per_byte": bits}
    text = None
    if isinstance(sample := run.settings.sample, TextSample):
        text = sample.prompt + write(run, sample)
        run.records.sample(run.step, text)
    run.show.evaluation(run.step, loss, bits, text)
    draw(run.records.lines, run.name, run.folder / PICTURE)


def validation_loss(run: Run) -> float:
    """Mean cross-entropy over the held-out batches, in nats, in eval mode."""
    objective, targets = run.settings.objective, 0
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    run.model.eval()
    for batch in run.validation:
        total += objective.measure(run.model, to(batch, run.device), run.autocast)
        targets += objective.targets(batch)
    run.model.train()
    return float(total) / targets


def held_out(data: Prepared, batch_size: int, seq_len: int, *, wanted: int | None, documents: bool) -> list[Batch]:
    """The validation split, or `wanted` rows spread evenly over all of it: its first rows would be a few documents."""
    tokens = data.validation
    there = (len(tokens) - 1) // seq_len
    if wanted is None or wanted >= there:
        return list(evaluation_batches(tokens, batch_size, seq_len, documents=documents))
    starts = [row * there // wanted * seq_len for row in range(wanted)]
    groups = [starts[first : first + batch_size] for first in range(0, wanted, batch_size)]
    return [to_batch(tokens.rows(group, seq_len + 1), tokens.eos_id, documents) for group in groups]


def write(run: Run, sample: TextSample) -> str:
    """What the model adds to the prompt: with the same draws each time, and none of the training's random numbers."""
    sampling = Sampling(temperature=sample.temperature, seed=run.settings.seed)
    eager = torch.compiler.set_stance("force_eager") if run.settings.compile else nullcontext()
    kernel, _ = choose_sampling_kernel(run.model.spec, run.settings.kernel, run.device)
    options: dict[str, Any] = {"max_new_tokens": sample.tokens, "sampling": sampling, "kernel": kernel}
    with eager:  # lengths grow with each token: each would compile anew
        return "".join(complete(run.model, run.data.tokenizer, sample.prompt, **options))


# ---------------------------------------------------------------- what is kept


def save(run: Run) -> None:
    """A checkpoint of this step, unless there is one."""
    if run.saved == run.step:
        return
    counters = {
        "step": run.step,
        "tokens": run.tokens,
        "seconds": run.clock.seconds,
        "last": run.last,
        "data": {**run.batches.state(), "key": run.data.key},
        "lengths": run.records.lengths(),
        "threads": run.watch.state(),
    }
    state = Resumable(run.model, run.optimizer, counters)
    save_run(run.folder, run.step, state, run.data.tokenizer, run.settings.keep)
    run.saved = run.step


@contextmanager
def stopping(run: Run) -> Iterator[None]:
    """Lets Ctrl-C and a scheduler's SIGTERM end the run after the present step; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if run.stopped:
            raise KeyboardInterrupt
        run.stopped = True
        run.show.say("stopping after this step (once more: at once, without a checkpoint)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outcome(run: Run) -> dict[str, Any]:
    """What came of a run, as plain data."""
    return {
        "status": "done",
        "model": run.name,
        "run": str(run.folder),
        "checkpoint": str(run.folder / CHECKPOINTS / f"step-{run.step:06}"),
        "params": sum(each.numel() for each in run.model.parameters()),
        "steps": run.step,
        "tokens": run.tokens,
        "train_loss": run.last["loss"],
        "val_loss": run.last["val_loss"],
        "bits_per_byte": run.last["bits_per_byte"],
        "seconds": round(run.clock.seconds, 3),
        "tokens_per_second": round(run.tokens / run.clock.seconds, 1),
        "mfu": share_of_peak(run, run.tokens / run.clock.seconds),
        "peak": str(run.peak),
    }
