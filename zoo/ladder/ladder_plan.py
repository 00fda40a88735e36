"""Plan a ladder's runs: sizes, learning rates, batches and lengths, their FLOPs, and their predicted seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from zoo.analysis.scaling.ladder_sizes import (
    EVAL_ROWS,
    LEAST_UPDATES,
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
"""Keys that the ladder sets itself. Overrides of them are refused."""

USUAL = ("schedule=wsd_s", "eval_every=null", "sample=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Default overrides of a ladder's runs."""

PATIENCE = 20.0
"""Maximum seconds for timing a few updates of a run. A run that would take longer is not timed (`predict_seconds`)."""


@dataclass(frozen=True)
class LadderRequest:
    """A request for a ladder. `largest` and `smallest` are numbers of parameters (None: the model's own, and a
    sixteenth of `largest`). Each size is trained with `seeds` seeds. With `tune` the learning rate is searched at two
    sizes, on a separate seed and separate data. At least `least_updates` come before a size's first point."""

    model: str
    overrides: tuple[str, ...] = ()
    sizes: int = 5
    smallest: float | None = None
    largest: float | None = None
    tokens_per_param: float = 20.0
    seeds: int = 1
    tune: bool = False
    least_updates: int = LEAST_UPDATES


@dataclass(frozen=True)
class Rung:
    """The planned run of one size and seed: its overrides, learning rate (`rate`), lengths and FLOPs.

    `seconds` (of training) and `evaluating` are predictions in seconds. `timed` says whether they come from timed
    updates of this size.
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
        """Numbers of tokens on which the weights are trained at the end of each decay."""
        return tuple(updates * self.batch_tokens for updates in self.lengths.trained)

    def find(self, key: str) -> str:
        """Return the value of an override."""
        return next(each.partition("=")[2] for each in self.overrides if _read_key(each) == key)


@dataclass(frozen=True)
class Ladder:
    """The rungs of a model, smallest first. With `tune`, their learning rates are the starting points of the search."""

    model: str
    tokens_per_param: float
    rungs: tuple[Rung, ...]
    tune: bool = False

    @property
    def largest(self) -> int:
        """Number of parameters of the largest size, which is held out."""
        return self.rungs[-1].params

    def list_searched(self) -> list[Rung]:
        """List one run of each size at which the learning rate is searched: the smallest and the middle one. A search
        at a larger size would cost more than the ladder."""
        if not self.tune:
            return []
        sizes = list({each.params: each for each in reversed(self.rungs)}.values())[::-1]
        return [sizes[0], sizes[(len(sizes) - 1) // 2]]

    def to_dict(self) -> dict[str, Any]:
        """Return the ladder as plain data."""
        rungs = [{**asdict(each), **asdict(each.lengths), "tokens": each.tokens} for each in self.rungs]
        for each in rungs:
            del each["lengths"]
        about = {"model": self.model, "tokens_per_param": self.tokens_per_param, "tune": self.tune}
        return json.loads(json.dumps({**about, "rungs": rungs}))


def plan_ladder(asked: LadderRequest) -> Ladder:
    """Plan the rungs, and check each as `zoo train` checks a run. Raises ConfigError for overrides of keys that the
    ladder sets itself (OWN), settings without a rule, a run that `zoo train` refuses, and a `smallest` that is not
    below `largest`."""
    keys = [_read_key(each) for each in asked.overrides]
    own = (*OWN, *(("seed",) if asked.seeds > 1 else ()), *(("eval_part",) if asked.tune else ()))
    if own := [key for key in keys if key in own]:
        raise ConfigError(*(f"{key}: is set for each size by the ladder (leave it out)" for key in own))
    base = plan_run(asked.model, asked.overrides)
    _check_base(base, keys)
    recipe = ComposedModel(asked.model, _choose_model_overrides(asked.overrides))
    largest = asked.largest or count_parameters(base.spec)["total"]
    smallest = asked.smallest or largest / 16
    if smallest >= largest:
        raise ConfigError(f"smallest: is {smallest:,.0f}, not below the largest of {largest:,.0f} parameters")
    sizes = choose_sizes(recipe, space_sizes(smallest, largest, asked.sizes))
    rows = choose_rows(sizes[0].params, base.settings.seq_len, asked.tokens_per_param, asked.least_updates)
    rows = base.settings.batch_size if "batch_size" in keys else rows
    rungs = []
    for at, size in enumerate(sizes, 1):
        rate = base.settings.optim.lr if "optim.lr" in keys else float(f"{compute_rate(size.params):.3g}")
        rung = _plan_rung(asked, base, f"{at:02}-{size.params}", size, rows, rate)
        seeds = range(asked.seeds) if asked.seeds > 1 else ()
        rungs += [replace(set_keys(rung, {"seed": seed}), name=f"{rung.name}-{seed}") for seed in seeds] or [rung]
    return Ladder(asked.model, asked.tokens_per_param, tuple(rungs), asked.tune)


def plan_together(asked: Mapping[str, LadderRequest]) -> dict[str, Ladder]:
    """Plan the ladders of arms. Arms without a batch size of their own share the smallest, because the rule gives
    slightly different sizes different batches. Raises ConfigError as `plan_ladder` does."""
    made = {name: plan_ladder(each) for name, each in asked.items()}
    ruled = [name for name, each in asked.items() if "batch_size" not in map(_read_key, each.overrides)]
    rows = {name: int(made[name].rungs[0].find("batch_size")) for name in ruled}
    for name in ruled:
        if rows[name] > (least := min(rows.values())):
            overrides = (*asked[name].overrides, f"batch_size={least}")
            made[name] = plan_ladder(replace(asked[name], overrides=overrides))
    return made


def _plan_rung(asked: LadderRequest, base: TrainingPlan, name: str, size: LadderSize, rows: int, rate: float) -> Rung:
    """Plan the run of a size with `rows` sequences per update. Raises ConfigError if it is too short."""
    seq_len, schedule = base.settings.seq_len, base.settings.schedule
    assert isinstance(schedule, WSDS)
    goes_back = schedule.continue_from == "before"
    lengths = choose_lengths(size.params, rows * seq_len, asked.tokens_per_param, schedule.decay, goes_back)
    if lengths.trained[0] < asked.least_updates:
        found = f"the first point of {size.params:,} parameters comes after {lengths.trained[0]} updates"
        cure = "a larger --smallest or --tokens-per-param, or a smaller batch_size or seq_len"
        raise ConfigError(f"smallest: {found} of {rows * seq_len:,} tokens ({asked.least_updates} at least: {cure})")
    made = {f"model.{key}": value for key, value in size.dims.items()}
    made |= {"batch_size": rows, "optim.lr": f"{rate:g}", "steps": lengths.updates}
    made |= {"schedule.points": f"[{','.join(map(str, lengths.ends[:-1]))}]", "schedule.warmup": lengths.warmup}
    made |= {"eval_batches": -(-EVAL_ROWS // rows)} | ({"eval_part": "reporting"} if asked.tune else {})
    typed = {_read_key(each) for each in asked.overrides}
    overrides = (*asked.overrides, *(f"{key}={value}" for key, value in made.items() if key not in typed))
    price = price_run(plan_run(asked.model, overrides), memory=False)
    assert price.flops is not None and price.params == size.params
    return Rung(name, overrides, size.params, rows * seq_len, rate, lengths, price.flops)


def set_keys(rung: Rung, values: Mapping[str, object]) -> Rung:
    """Return a copy of a rung with other settings, replacing those in its overrides."""
    kept = [each for each in rung.overrides if _read_key(each) not in values]
    return replace(rung, overrides=(*kept, *(f"{key}={value}" for key, value in values.items())))


def plan_run(model: str, overrides: Sequence[str]) -> TrainingPlan:
    """Plan a training run of a model. Raises ConfigError as `zoo train` does."""
    with plan_launch(spell(model, overrides)) as plan:
        return plan_training(task_config(plan.jobs[0]))


def spell(model: str, overrides: Sequence[str]) -> list[str]:
    return [f"model='{model}'", *USUAL, *overrides]


def _read_key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _choose_model_overrides(overrides: Sequence[str]) -> list[str]:
    """List the overrides of the model, without the prefix `model.`, as `zoo stats` accepts them."""
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
    """Predict the seconds of each run. STEPS updates and an evaluation are timed for each run in which this should take
    at most PATIENCE. The seconds of other runs follow from the FLOP/s of the last timed size, or else of matrix
    products alone. Raises ZooError if a run could not begin."""
    from zoo.run.builder import pick_device
    from zoo.training.device_defaults import settle_defaults
    from zoo.training.speed import find_peak

    rate, timed = 0.0, []
    for rung in ladder.rungs:
        if timed and timed[-1].params == rung.params:  # another seed of the size
            known = timed[-1]
            timed.append(replace(rung, seconds=known.seconds, evaluating=known.evaluating, timed=known.timed))
            continue
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
