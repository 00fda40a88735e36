"""Run a probe on a model: search the learning rate, then train and score several seeds at a good rate."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from zoo.analysis.verdict.rate_optimum import find_good_window
from zoo.costs.params import count_parameters
from zoo.costs.price import price
from zoo.costs.setup import Setup
from zoo.errors import ConfigError
from zoo.jobs.forecast import STEPS
from zoo.jobs.rates import SEED
from zoo.probes.all_probes import make_probe
from zoo.probes.base import Probe
from zoo.probes.outcome import ENOUGH, ProbeOutcome, SeedReport, is_learned
from zoo.probes.outcome_store import ScoreStore
from zoo.probes.shrink import SizeDemand, find_idle_windows, shrink

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from zoo.model.decoder import Decoder
    from zoo.spec import Spec

RATES = tuple(10 ** (-4 + half / 2) for half in range(6))
"""Learning rates of the first search: half decades from 1e-4 to 3e-2."""

BESIDE = (10**-0.25, 10**0.25)
"""Factors of the second search: the best of RATES is multiplied by each."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProbeTraining:
    """One training of a model on a probe. With `report` the model is scored on every level, otherwise on the examples
    for choosing the learning rate."""

    spec: Decoder
    probe: Probe
    lr: float
    seed: int
    report: bool


def run_probe(
    model: str | Path | Spec,
    probe: str,
    overrides: Sequence[str] = (),
    *,
    size: str = "card",
    settings: Mapping[str, Any] | None = None,
    seeds: int = 3,
    rates: Sequence[float] | None = None,
    pool: Executor | None = None,
    folder: Path | None = None,
    say: Say = lambda line: None,
) -> ProbeOutcome:
    """Run a probe on a packaged model, a YAML or a Spec, shrunk to the probe's size.

    `overrides` change the model; dimensions that they set are not shrunk (`n_layers=1`, `d_model=128`). `settings`
    change the probe (`{"context": 64, "levels": (8,)}`). First a separate seed (SEED) is trained at all `rates` (None:
    RATES, then two next to the best), then every reported seed at the rate of `choose_rate`. Trainings run in the
    processes of a `pool` (`open_pool`), if given. In a `folder` each training is stored, so that a killed run resumes.
    Raises ConfigError for an unknown probe or setting, for a model that cannot be shrunk, and if `seeds` is below 1.
    """
    if seeds < 1:
        raise ConfigError(f"seeds: is {seeds} (1 at least)")
    task = make_probe(probe, size, settings)
    spec, label = load_small(model, task, overrides)
    store = ScoreStore.open(folder, hash_key(spec, task))
    with nullcontext(pool) if pool else open_pool(1) as pool:
        chosen = search_rate(
            spec, task, sorted(set(rates or RATES)), refine=rates is None, pool=pool, store=store, say=say
        )
        rate = choose_rate(chosen, task.mixed_baseline())
        todo = [ProbeTraining(spec, task, rate, seed, True) for seed in range(seeds)]
        reports, seconds = [], sum(found["seconds"] for found in chosen.values())
        for each, found in run_tasks(todo, pool, store):
            seconds += found["seconds"]
            levels, curve = ({int(at): value for at, value in found[key].items()} for key in ("levels", "curve"))
            reports.append(SeedReport(each.seed, levels, curve))
            say(f"{task.name}: lr {each.lr:.2g}, seed {each.seed}: up to {reports[-1].reach} {task.level_is}")
    accuracy = {lr: found["accuracy"] for lr, found in chosen.items()}
    ran = {"chosen": dict(sorted(accuracy.items())), "lr": rate, "seeds": tuple(reports), "seconds": round(seconds, 1)}
    made = describe(task, spec, model=label, overrides=tuple(overrides), size=size, key=store.key, **ran)
    store.finish(made)
    return made


def load_small(model: str | Path | Spec, probe: Probe, overrides: Sequence[str] = ()) -> tuple[Any, str]:
    """Load a model and shrink it to a probe's size. Return its Spec and a label. Raises ConfigError as `shrink`
    does."""
    from zoo.run.builder import load_spec

    label = model if isinstance(model, str | Path) else getattr(model, "kind", "model")
    longest = max(probe.seq_len, *(probe.length(level) for level in probe.levels))
    kept = {name for text in overrides for name in list_touched(text)}
    small = shrink(
        load_spec(model, overrides),
        SizeDemand(probe.vocab_size, longest, probe.mixer_alone, probe.d_model),
        kept,
        f"{label}, {probe.name}",
    )
    return small, str(label)


def list_touched(override: str) -> list[str]:
    """List the keys that an override sets: `attention.beta_scale=2` sets attention and beta_scale."""
    key = override.lstrip("+~").partition("=")[0].partition("@")[0]
    return [*dict.fromkeys([key.partition(".")[0], key.rpartition(".")[2]])]


def hash_key(spec: Decoder, probe: Probe) -> str:
    """Hash the architecture and the probe: all that a training depends on, except learning rate and seed."""
    from zoo.grammar import to_essentials

    text = json.dumps([to_essentials(spec), probe.name, probe.settings()], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def search_rate(
    spec: Decoder,
    probe: Probe,
    rates: Sequence[float],
    *,
    refine: bool,
    pool: Executor | None,
    store: ScoreStore,
    say: Say = lambda line: None,
) -> dict[float, dict[str, float]]:
    """Train the seed SEED at every rate and, with `refine`, at two more next to the best. Return accuracy, loss and
    seconds by rate."""
    chosen: dict[float, dict[str, float]] = {}

    def search(some: Iterable[float]) -> None:
        for each, found in run_tasks([ProbeTraining(spec, probe, lr, SEED, False) for lr in some], pool, store):
            chosen[each.lr] = found
            say(f"{probe.name}: lr {each.lr:.2g}: accuracy {found['accuracy']:.3f}")

    search(rates)
    if refine:
        best = find_best(chosen)
        search(best * factor for factor in BESIDE)
    return chosen


def find_best(chosen: Mapping[float, Mapping[str, float]]) -> float:
    """Return the learning rate with the best accuracy. Among equal accuracies the lowest loss decides."""
    return max(chosen, key=lambda lr: (chosen[lr]["accuracy"], -chosen[lr]["loss"]))


SATURATED = 0.02
"""Fraction of the best accuracy by which a rate's accuracy may be lower and still count as equally good."""


def choose_rate(chosen: Mapping[float, Mapping[str, float]], baseline: float) -> float:
    """Choose the rate nearest to the middle, on a log scale, of the rates about as good as the best (SATURATED). If no
    rate is better than a guess of accuracy `baseline`, choose the best. The best rate of one seed is often the last
    before divergence, where other seeds fail."""
    accuracy = {lr: found["accuracy"] for lr, found in chosen.items()}
    if not is_learned(max(accuracy.values()), baseline):
        return find_best(chosen)
    window = find_good_window({math.log10(lr): -value for lr, value in accuracy.items()}, tolerance=SATURATED)
    return min(chosen, key=lambda lr: abs(math.log10(lr) - (window.low + window.high) / 2))


@contextmanager
def open_pool(jobs: int) -> Iterator[Executor | None]:
    """Open a pool of processes with one thread each; None for one job, which runs in this process. Small matrices gain
    nothing from threads, nor from stacking the seeds into one model with torch.vmap (measured in November 2026)."""
    if jobs == 1:
        from zoo.run.threads import keep_threads

        with keep_threads():
            use_one_thread()
            yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, get_context("spawn"), use_one_thread) as pool:
        yield pool


def use_one_thread() -> None:
    """Limit torch to one thread in this process."""
    from zoo.lazy import torch

    torch.set_num_threads(1)


def run_tasks(
    tasks: Sequence[ProbeTraining], pool: Executor | None, store: ScoreStore
) -> Iterator[tuple[ProbeTraining, dict[str, Any]]]:
    """Run the tasks that are not in the store. Yield each task with its result, in order."""
    waiting = [pool.submit(run_task, each) if pool and each not in store else None for each in tasks]
    for each, future in zip(tasks, waiting, strict=True):
        if each in store:
            yield each, store.read(each)
            continue
        found = run_task(each) if future is None else future.result()
        store.write(each, found)
        yield each, found


def run_task(task: ProbeTraining) -> dict[str, Any]:
    """Train and score one model. Return plain data for the store."""
    start = time.monotonic()
    found = _train_and_score(task)
    return {**found, "seconds": round(time.monotonic() - start, 2)}


def _train_and_score(task: ProbeTraining) -> dict[str, Any]:
    from zoo.probes.training import CHECKED, score, train

    probe, curve = task.probe, {}

    def check(step: int, learner: Any) -> None:
        if max(curve.values(), default=0.0) < ENOUGH:  # what comes later tells nothing more
            curve[step] = score(learner, probe, task.seed, "choose", most=CHECKED).accuracy

    learner = train(task.spec, probe, task.lr, task.seed, check=check if task.report else None)
    if not task.report:
        found = score(learner, probe, task.seed, "choose")
        return {"accuracy": found.accuracy, "loss": found.loss}
    params = count_parameters(task.spec)["total"]
    levels = {}
    for level in probe.levels:
        found = score(learner, probe, task.seed, "report", level)
        measured = probe.measure(level, found.accuracy, found.loss, params)
        levels[str(level)] = {"accuracy": found.accuracy, "loss": found.loss, **measured}
    return {"levels": levels, "curve": {str(step): accuracy for step, accuracy in curve.items()}}


def count_searched(rates: Sequence[float] | None) -> int:
    """Count the trainings of the search for the learning rate. None stands for RATES and the refinement."""
    return len(set(rates)) if rates else len(RATES) + len(BESIDE)


def predict_seconds(spec: Decoder, probe: Probe, searched: int, seeds: int) -> float:
    """Predict the seconds of a probe's trainings in one thread: `searched` for the learning rate and `seeds` reported
    ones. A few updates (STEPS) and the scoring of one level are run and timed."""
    from zoo.probes.training import CHECKED, CHECKS, HELD_OUT, score, train

    ends: list[float] = []
    with open_pool(1):
        learner = train(spec, probe, RATES[0], SEED, STEPS + 1, lambda *_: ends.append(time.monotonic()))
        step, start = median(end - before for before, end in pairwise(ends)), time.monotonic()
        score(learner, probe, SEED, "choose")
        scoring = time.monotonic() - start
    trainings, levels = searched + seeds, len(probe.levels) + CHECKS * CHECKED / HELD_OUT
    return trainings * probe.steps * step + (searched + seeds * levels) * scoring


def describe(probe: Probe, spec: Decoder, *, size: str, **ran: Any) -> ProbeOutcome:
    """Make the ProbeOutcome of a model with its price, from the fields that the run of the probe has found."""
    priced = price(spec, Setup(context=probe.seq_len, dtype="fp32"), parts=("params", "flops", "kv_cache"))
    trained = tuple(level for level in probe.levels if probe.trains(level))
    idle = find_idle_windows(spec, probe.seq_len)
    notes = [f"a window of {each} hides nothing in {probe.seq_len} tokens" for each in idle]
    if changes := probe.list_changes():
        notes.append(f"size {size}, the source's in brackets: {', '.join(changes)}")
    blocks = [spec.blocks[name] for name in spec.pattern]
    return ProbeOutcome(
        probe=probe.name,
        size=size,
        settings=probe.settings(),
        level_is=probe.level_is,
        chances={level: probe.chance(level) for level in probe.levels},
        baselines={level: probe.baseline(level) for level in probe.levels},
        layers=tuple(f"{block.kind}, {block.attention.kind}" for block in blocks),
        params=priced["params"]["total"],
        state_bytes=priced["kv_cache"]["bytes"],
        flops=priced["flops"]["forward"],
        baseline=probe.mixed_baseline(),
        trained=trained,
        notes=tuple(notes),
        **ran,
    )
