"""Plan a ladder's runs: sizes, learning rates, batches and lengths, their FLOPs, and their seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zoo.analysis.scaling.ladder_sizes import (
    EVAL_ROWS,
    LadderSize,
    RunLengths,
    choose_lengths,
    choose_rows,
    choose_sizes,
    compute_rate,
    space_sizes,
)
from zoo.analysis.solve.proportions import ComposedModel
from zoo.costs.params import count_parameters
from zoo.distributed.world import ALONE, read_world
from zoo.errors import ConfigError, refuse
from zoo.grammar import AXES
from zoo.jobs.forecast import STEPS, price_run, time_steps
from zoo.jobs.plan import plan_launch, task_config
from zoo.training.planning import TrainingPlan, plan_training
from zoo.training.schedule import WSDS
from zoo.training.start.begin import StartSettings

LEAST_SIZES = 4
"""Fewest sizes of a ladder: a law needs three, and the largest is held out."""

OWN = ("model", "steps", "eval_batches", "schedule", "schedule.points", "schedule.warmup", "hydra.run.dir")
"""Keys that the ladder itself sets."""

USUAL = ("schedule=wsd_s", "eval_every=null", "sample=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Default overrides of a ladder's runs."""

PATIENCE = 20.0
"""Longest time, in seconds, that timing a few updates of a run may take. A run for which it would take longer is not
timed (`predict_seconds`)."""


@dataclass(frozen=True)
class LadderRequest:
    """A request for a ladder. `largest` and `smallest` are numbers of parameters (None: the model's own, and a
    sixteenth of `largest`)."""

    model: str
    overrides: tuple[str, ...] = ()
    sizes: int = 5
    smallest: float | None = None
    largest: float | None = None
    tokens_per_param: float = 20.0


@dataclass(frozen=True)
class Rung:
    """The planned run of one size: its overrides, learning rate (`rate`), lengths and FLOPs.

    `seconds` (training) and `evaluating` are predicted seconds; `timed` says whether some of the run's updates were
    timed.
    """

    name: str
    overrides: tuple[str, ...]
    params: int
    batch_tokens: int
    rate: float
    lengths: RunLengths
    flops: int
    seconds: float | None = None
    evaluating: float = 0.0
    timed: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        """Give the tokens that the weights are trained on at the end of each decay."""
        return tuple(updates * self.batch_tokens for updates in self.lengths.trained)


@dataclass(frozen=True)
class Ladder:
    """The rungs of a model, smallest first."""

    model: str
    tokens_per_param: float
    rungs: tuple[Rung, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the ladder as plain data."""
        rungs = [{**asdict(each), **asdict(each.lengths), "tokens": each.tokens} for each in self.rungs]
        for each in rungs:
            del each["lengths"]
        return json.loads(json.dumps({"model": self.model, "tokens_per_param": self.tokens_per_param, "rungs": rungs}))


def plan_ladder(asked: LadderRequest) -> Ladder:
    """Plan the rungs, each checked as `zoo train` checks a run. Raises ConfigError for overrides of keys in OWN,
    settings without a rule, a run that `zoo train` refuses, and a `smallest` that is not below `largest`."""
    keys = [_read_key(each) for each in asked.overrides]
    if own := [key for key in keys if key in OWN]:
        raise ConfigError(*(f"{key}: is set for each size by the ladder (leave it out)" for key in own))
    base = plan_run(asked.model, asked.overrides)
    _check_base(base, keys)
    recipe = ComposedModel(asked.model, _choose_model_overrides(asked.overrides))
    largest = asked.largest or count_parameters(base.spec)["total"]
    smallest = asked.smallest or largest / 16
    if smallest >= largest:
        raise ConfigError(f"smallest: is {smallest:,.0f}, not below the largest of {largest:,.0f} parameters")
    sizes = choose_sizes(recipe, space_sizes(smallest, largest, asked.sizes))
    whole = any(choose_rows(size.params, base.settings.seq_len) > EVAL_ROWS for size in sizes)
    rungs = []
    for at, size in enumerate(sizes, 1):
        rows, rate = choose_rows(size.params, base.settings.seq_len), float(f"{compute_rate(size.params):.3g}")
        rows = base.settings.batch_size if "batch_size" in keys else rows
        rate = base.settings.optim.lr if "optim.lr" in keys else rate
        rungs.append(_plan_rung(asked, base, f"{at:02}-{size.params}", size, rows, rate, whole))
    return Ladder(asked.model, asked.tokens_per_param, tuple(rungs))


def _plan_rung(
    asked: LadderRequest, base: TrainingPlan, name: str, size: LadderSize, rows: int, rate: float, whole: bool
) -> Rung:
    """Plan the run of a size with `rows` rows an update; `whole` evaluates on the whole validation split."""
    seq_len, schedule = base.settings.seq_len, base.settings.schedule
    assert isinstance(schedule, WSDS)
    goes_back = schedule.continue_from == "before"
    lengths = choose_lengths(size.params, rows * seq_len, asked.tokens_per_param, schedule.decay, goes_back)
    made = {f"model.{key}": value for key, value in size.dims.items()}
    made |= {"batch_size": rows, "optim.lr": f"{rate:g}", "steps": lengths.updates}
    made |= {"schedule.points": f"[{','.join(map(str, lengths.ends[:-1]))}]", "schedule.warmup": lengths.warmup}
    made |= {"eval_batches": "null" if whole else -(-EVAL_ROWS // rows)}
    typed = {_read_key(each) for each in asked.overrides}
    overrides = (*asked.overrides, *(f"{key}={value}" for key, value in made.items() if key not in typed))
    price = price_run(plan_run(asked.model, overrides), memory=False)
    assert price.flops is not None and price.params == size.params
    return Rung(name, overrides, size.params, rows * seq_len, rate, lengths, price.flops)


def plan_run(model: str, overrides: Sequence[str]) -> TrainingPlan:
    """Plan a training run of a model. Raises ConfigError as `zoo train` does."""
    with plan_launch(spell(model, overrides)) as plan:
        return plan_training(task_config(plan.jobs[0]))


def spell(model: str, overrides: Sequence[str]) -> list[str]:
    return [f"model='{model}'", *USUAL, *overrides]


def _read_key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _choose_model_overrides(overrides: Sequence[str]) -> list[str]:
    """Select the overrides of the model, without the prefix `model.`, as `zoo stats` takes them."""
    found = [re.sub(r"^([+~]*)model\.", r"\1", each) for each in overrides]
    return [
        each
        for each, typed in zip(found, overrides, strict=True)
        if each != typed or _read_key(each).split(".")[0] in AXES
    ]


def _check_base(base: TrainingPlan, keys: Sequence[str]) -> None:
    """Raise ConfigError for settings to which the ladder's rules do not apply."""
    settings, faults = base.settings, []
    if settings.objective.kind != "next_token":
        found = f"is {settings.objective.kind}, and the ladder counts tokens as next_token reads them"
        faults.append(f"objective: {found} (a decoder)")
    elif StartSettings.of(settings).partly:
        faults.append("train: a ladder trains all weights (leave out freeze, train and lora)")
    for name, usual in (("optim", "adamw"), ("parametrisation", "standard")):
        if (kind := getattr(settings, name).kind) != usual and "optim.lr" not in keys:
            faults.append(f"optim.lr: the rule for it is {usual}'s, found {name}={kind} (optim.lr=…, of all sizes)")
    if settings.launcher.kind != "none" or read_world().size > 1:
        faults.append("launcher: a ladder's runs have one process each (launcher=none)")
    refuse(faults)


def predict_seconds(ladder: Ladder) -> Ladder:
    """Predict the seconds of each run. STEPS updates and an evaluation of a run are timed, if timing is expected to
    take at most PATIENCE. The seconds of any other run follow from the FLOP/s of the last timed size or, before any, of
    matrix products alone. Raises ZooError if a run could not begin."""
    from zoo.run.builder import pick_device
    from zoo.training.device_defaults import settle_defaults
    from zoo.training.speed import find_peak

    rate, timed = 0.0, []
    for rung in ladder.rungs:
        planned = plan_run(ladder.model, rung.overrides)
        if not rate:
            device = pick_device(planned.settings.device)
            rate = find_peak(device, settle_defaults(planned, device, ALONE).settings.arithmetic).flops
        update = rung.flops / rung.lengths.updates
        if (STEPS + 1) * update / rate > PATIENCE:
            timed.append(replace(rung, seconds=rung.flops / rate))
            continue
        timing = time_steps(planned)
        rate = update / timing.step
        evaluating = len(rung.lengths.ends) * timing.batches * timing.evaluation
        timed.append(replace(rung, seconds=timing.predict_training(planned), evaluating=evaluating, timed=True))
    return replace(ladder, rungs=tuple(timed))
