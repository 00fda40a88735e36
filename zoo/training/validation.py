"""Evaluate a run while it trains: the validation loss, a sample of text, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.costs.kernels import asks
from zoo.costs.setup import Setup
from zoo.data.tokens import Batch, move_batch
from zoo.distributed.sharded_tensors import count_gathered, weights_gathered
from zoo.distributed.world import ALONE
from zoo.errors import ConfigError, ZooError, short
from zoo.kernels import KERNELS, machine_of
from zoo.lazy import Tensor, torch
from zoo.run.machine_memory import read_free_memory
from zoo.sampling.options import Sampling
from zoo.text.follow import complete
from zoo.text.jobs import spell_prompt
from zoo.text.prompts import Options
from zoo.training.averages import read_weights, use_weights
from zoo.training.callbacks import tell
from zoo.training.compiling import run_eagerly
from zoo.training.failures import FORESEEN, lost_another
from zoo.training.gradient import share_rows
from zoo.training.memory_fit import gigabytes
from zoo.training.metric_lines import settle_line
from zoo.training.objective.base import describe
from zoo.training.run import Run
from zoo.training.saving import find_checkpoint, find_optimizer_average, keep_if_best, note_evaluation
from zoo.training.settings import TextSample, Training

if TYPE_CHECKING:
    from zoo.model.tower import Topology


PIECES = 64
"""Maximum number of pieces of a validation split whose losses are in a run's outcome. A piece is several batches."""


class LossSum(NamedTuple):
    """The loss summed over validation batches, in nats for tokens and classes, and the number of targets; `batches` has
    both for each batch."""

    nats: float
    targets: int
    batches: Sequence[tuple[float, int]]


class EvaluationStopped(Exception):
    """Raised when a signal stops an evaluation. A resumed run repeats it."""


def measure(run: Run) -> None:
    """Evaluate, write a sample, draw pictures. If one of these fails, a warning is printed and training continues. In a
    run of several processes, a failure that may be this process' alone is raised."""
    settle_line(run)
    for what, work in (("evaluation", evaluate), ("sample", write_sample), *run.drawings.items()):
        try:
            with use_weights(run.model, find_evaluated_weights(run)):
                work(run)
        except EvaluationStopped:
            run.model.train()
            return
        except FORESEEN as error:
            if run.records.failed or lost_another(error) or may_fail_alone(run, what, error):
                raise
            run.show.say(f"step {run.step}: no {what}, found {short(error)} (training goes on)")
        run.model.train()
    keep_if_best(run)
    note_evaluation(run)
    if not run.evaluation_due:  # it did not fail
        tell(run, "after_eval")


def may_fail_alone(run: Run, what: str, error: Exception) -> bool:
    """Whether an error in collective work may have occurred in this process alone, such as exhausted memory. The other
    processes would then be waiting in the middle of a pass, and mistake the next step's weights for those of this pass.
    A sample without a next token (ZooError) fails in every process; pictures are drawn only by the main process."""
    alike = what == "sample" and isinstance(error, ZooError)
    return run.world.size > 1 and what in ("evaluation", "sample") and not alike


def find_evaluated_weights(run: Run) -> Mapping[str, Tensor]:
    """Return the weights, by name, to evaluate and sample from; {} for the model's own."""
    if run.settings.eval_weights == "ema":
        assert run.ema is not None
        return run.ema.weights
    if run.settings.eval_weights == "lawa":
        return read_weights(find_checkpoint(run, run.step) / "lawa")
    return find_optimizer_average(run)


# ---------------------------------------------------------------- the loss


def evaluate(run: Run) -> None:
    """Measure the validation loss and write it as a line of metrics; for a mix, also the loss of each source.

    Bits per byte divide by the bytes of the scored targets. An end of text is scored and has no bytes.
    """
    run.gauges.measure_peak_again()
    metrics = run.settings.objective.open_metrics()
    found = [(each, measure_validation_loss(run, each.batches, metrics)) for each in run.held_out]
    nats, targets = sum(own.nats for _, own in found), sum(own.targets for _, own in found)
    values = name_losses("", nats, targets, sum(each.n_bytes or 0 for each, _ in found))
    if len(found) > 1:
        for each, own in found:
            values |= name_losses(f"/{each.name}", own.nats, own.targets, each.n_bytes)
    measured = {} if metrics is None else {f"val_{name}": value for name, value in metrics.compute().items()}
    run.details = {} if metrics is None else metrics.describe()
    run.details["val_pieces"] = join_batches([batch for _, own in found for batch in own.batches])
    values |= measured
    run.records.write_line(**run.place, **count_trained(run), **values)
    run.last |= values
    run.evaluation_due = False
    run.show.evaluation(run.step, values["val_loss"], values.get("bits_per_byte"), measured)


def join_batches(batches: Sequence[tuple[float, int]]) -> list[list[float]]:
    """Join the sums of neighbouring batches into at most PIECES pieces: (nats, targets) of each. Two runs that read the
    same rows have the same pieces, so the noise of their difference can be estimated."""
    count = min(PIECES, len(batches))
    bounds = [at * len(batches) // count for at in range(count + 1)] if count else [0]
    pieces = [batches[start:end] for start, end in pairwise(bounds)]
    return [[round(sum(nats for nats, _ in piece), 6), sum(targets for _, targets in piece)] for piece in pieces]


def measure_validation_loss(run: Run, batches: list[Batch], metrics: Any = None) -> LossSum:
    """Sum the loss over batches, in eval mode: for tokens and classes the negative log-likelihood. An objective's
    `metrics` get the results too."""
    sums, targets = [], []
    world = run.layout.tokens if metrics is None else ALONE  # metrics of rows need all rows
    run.model.eval()
    try:
        for batch in batches:
            if run.asked and run.world.size == 1:  # several processes would have to agree for each batch
                raise EvaluationStopped
            batch, counts = share_rows(batch, world)
            count = run.settings.objective.targets(batch)
            with torch.no_grad():
                sums.append(run.computing.judge(move_batch(batch, run.device), count, metrics).double() * counts)
            targets.append(count * counts)
    finally:
        run.model.train()
    nats = world.all_reduce_(torch.stack(sums).reshape(-1)).tolist() if sums else []
    counted = world.sum(*targets) if targets else []
    return LossSum(math.fsum(nats), sum(counted), list(zip(nats, counted, strict=True)))


def name_losses(suffix: str, nats: float, targets: int, n_bytes: int | None) -> dict[str, float]:
    """Compute the mean loss over targets (in nats for tokens and classes) and, if the bytes of the targets' text are
    known, the bits per byte. Both names end with `suffix`."""
    bits = {f"bits_per_byte{suffix}": nats / math.log(2) / n_bytes} if n_bytes else {}
    return {f"val_loss{suffix}": nats / targets, **bits}


def count_trained(run: Run) -> dict[str, int]:
    """Count the tokens that the weights were trained on, if one of several decays has just ended; otherwise return {}.
    Tokens of earlier decays are left out if the run went back to before those decays."""
    if not run.at_point:
        return {}
    kept = run.step - run.settings.schedule.count_left_behind(run.step, run.settings.steps)
    return {"trained_tokens": round(run.tokens * kept / run.step)}  # all updates have equally many tokens


# ---------------------------------------------------------------- the sample


def write_sample(run: Run) -> None:
    """Generate and write a sample, if the config has a prompt, the model generates text, and the run has no pipeline.
    Raises ConfigError in all processes if the whole weights, which are gathered once, do not fit into the memory of one
    of them."""
    sample, settings, spec = run.settings.sample, run.settings, run.model.spec
    if not isinstance(sample, TextSample) or not writes(spec) or run.layout.stages is not None:
        return
    kernel, _ = choose_sampling_kernel(spec, settings, run.device)
    template = run.data.template
    given = settings.objective.write_prompt(sample.prompt, template)
    sampling = Sampling(temperature=sample.temperature, seed=settings.seed)  # not training's draws
    options = Options(max_new_tokens=sample.tokens, sampling=sampling)
    # Every process generates the sample, because each may hold a part of the weights. Compiled layers would be
    # recompiled for each token, because the length grows. A CUDA graph would record FSDP's gathers, and its memory
    # would stay.
    serving: dict[str, Any] = {"graphs": False}
    casts = run.layout.casts_weights(settings)
    if casts:  # the keys come in the dtype of gathered weights
        serving["dtype"] = torch.bfloat16
    require_room(run, count_gathered(run.model, 2 if casts else None))
    with weights_gathered(run.model), run_eagerly(run.compiled is True):
        pieces = complete(run.model, run.data.tokenizer, given, options, template=template, kernel=kernel, **serving)
        text = spell_prompt(given, template) + "".join(pieces)
    run.records.write_sample(run.step, text)
    run.show.sample(text)


def require_room(run: Run, needed: int) -> None:
    """Raise ConfigError in all processes if fewer than `needed` bytes are free in one of them."""
    free = read_free_memory(run.device) if needed else None
    if run.world.sum(int(free is not None and free < needed))[0]:
        raise ConfigError(f"sample: gathers {gigabytes(needed)} of weights, which a process lacks (sample=null)")


def writes(spec: Topology) -> bool:
    """Whether a model generates text, so that samples can be taken."""
    return any(tower.causal and tower.head.predicts_tokens for tower in spec.towers().values())


def describe_silence(spec: Topology) -> str:
    """Describe the topology of a model that generates no text, and its head if the topology is causal."""
    heads = [tower.head for tower in spec.towers().values() if tower.causal]
    return f"{describe(spec)} with a head of kind '{heads[-1].kind}'" if heads else describe(spec)


def choose_sampling_kernel(spec: Topology, settings: Training, device: torch.device) -> tuple[str, str | None]:
    """Choose the attention kernel for samples. Returns the kernel's name, and a line about the kernel if another one
    trains.

    Training and evaluation compute in the run's precision. Samples are generated with the stored weights, mostly in
    float32, a token at a time and without gradients. If the kernel named for training refuses such calls, `auto` is
    used.
    """
    kernel = settings.kernel
    if kernel == "auto":
        return kernel, None
    machine, setup = machine_of(device), Setup(dtype="bf16" if settings.pure else "fp32")
    towers = spec.towers().values()
    for use, tower in ((use, tower) for use in ("prefill", "decode") for tower in towers if tower.causal):
        for kind in tower.blocks:
            for ask in asks(tower, kind, use, setup).values():
                reason = None if ask is None else KERNELS[kernel].refuses(ask, machine)
                if reason is not None:
                    return "auto", f"kernel={kernel} trains and evaluates; samples take kernel=auto, as {reason}"
    return kernel, None
