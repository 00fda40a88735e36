"""Match the arms of a sweep in one budget: solve one dimension of each arm for the baseline's cost.

Arms of equal parameters, equal FLOPs or equal KV cache answer different questions (Narang et al., 2021), so the costs
that are *not* matched are reported too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from zoo.analysis.solve.bisection import find_crossing
from zoo.errors import ConfigError, refuse
from zoo.grammar import resolve
from zoo.grammar.places import look_up
from zoo.jobs.forecast import Forecaster, price_elementwise, price_run
from zoo.jobs.plan import LaunchPlan
from zoo.jobs.sweep import SweepPoint, find_key, group_by_arm
from zoo.report.arms import find_unmatched
from zoo.training.planning import TrainingPlan

TOLERANCE = 0.01
"""An arm is matched if its cost differs from the baseline's by at most this fraction."""

BUDGETS = {
    **{"params": "d_ff", "active": "d_ff", "non_embedding": "d_ff", "flops": "d_ff", "kv": "n_layers"},
    **{"data": "steps", "time": "steps"},
}
"""Maps each budget to the dimension that is solved by default. For kv, n_kv_heads is preferred if it matches all arms
(`choose_dimension`), because depth would change more than the cache."""

FIGURES = {
    **{"params": "params", "active": "active", "non_embedding": "non_embedding"},
    **{"flops": "all_flops", "kv": "cache_bytes", "data": "tokens"},
}
"""Maps each budget to its field of `Price`; `time` is measured instead."""

CURRENCIES = ("params", "active", "all_flops", "elementwise", "cache_bytes", "tokens")
"""The costs in which arms are compared after matching: fields of `Price`, and the elementwise operations of the forward
passes."""

MOST = 1 << 26
"""The largest value tried for a dimension."""


@dataclass(frozen=True)
class MatchedArm:
    """A matched arm: its name before and after matching, its jobs, the dimension's solved value, and its costs."""

    was: str
    name: str
    jobs: Sequence[SweepPoint]
    value: int
    figures: Mapping[str, float]
    """The known costs, by their names in CURRENCIES or FIGURES."""
    noise: float | None = None
    """The relative standard error of the arm's measured seconds; None unless arms are matched in time."""


@dataclass(frozen=True)
class Match:
    """The arms matched in a budget by solving the dimension `by`, the baseline first."""

    budget: str
    by: str
    arms: Sequence[MatchedArm]

    @property
    def jobs(self) -> list[SweepPoint]:
        return [job for arm in self.arms for job in arm.jobs]

    def ratios(self, arm: MatchedArm) -> dict[str, float]:
        """Divide an arm's costs by the baseline's, for the currencies in which they differ by more than 1 %."""
        return find_unmatched(arm.figures, self.arms[0].figures, arm.figures)

    @property
    def unmatched(self) -> list[str]:
        """The names of the costs in which some arm differs from the baseline by more than 1 %."""
        return [name for name in CURRENCIES if any(name in self.ratios(arm) for arm in self.arms)]

    @property
    def noise(self) -> float | None:
        """The largest relative standard error of the ratio of an arm's seconds to the baseline's; None if no other arm
        was timed."""
        first, *others = (each.noise for each in self.arms)
        known = [math.hypot(first or 0.0, each) for each in others if each is not None]
        return max(known, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Write the match as plain data."""
        arms = [
            {"arm": each.name, "was": each.was, self.by: each.value, **each.figures, "ratios": self.ratios(each)}
            | ({} if each.noise is None else {"noise": each.noise})
            for each in self.arms
        ]
        return {"budget": self.budget, "by": self.by, "arms": arms, "unmatched": self.unmatched}


@dataclass(frozen=True)
class Matching:
    """A request to match arms: the budget, the dimension to solve, and the baseline, by default the first arm."""

    budget: str
    by: str
    baseline: str | None = None

    def match(
        self,
        plan: LaunchPlan,
        jobs: Sequence[SweepPoint],
        forecaster: Forecaster,
        known: Mapping[str, int] | None = None,
    ) -> Match:
        """Solve each arm's dimension for the baseline's cost, and set it in all jobs of the arm. `known` values, by
        arm, are not solved again. Raises ConfigError with every arm that cannot be matched."""
        arms = group_by_arm(jobs)
        first = self.baseline or next(iter(arms))
        refuse(find_faults(arms, self.budget, self.by, first))
        figure = functools.partial(find_figure, budget=self.budget, forecaster=forecaster)
        faults: list[str] = []
        target, found = figure(arms[first][0].planned), {}
        for name, own in arms.items():
            try:
                value = (known or {}).get(name)
                value = solve_arm(plan, own[0], self.by, figure, target) if value is None and name != first else value
            except ConfigError as error:
                faults += [f"match: {name}: {fault}" for fault in error.faults]
                continue
            solved = (
                own
                if value is None
                else [plan.compose_point(change(each.typed, self.by, value), each.arm) for each in own]
            )
            found[name] = solved
        refuse(faults)
        ordered = [first, *(name for name in arms if name != first)]
        names = list(group_by_arm([found[was][0] for was in ordered]))
        described = (describe_arm(was, found[was], self, forecaster) for was in ordered)
        return Match(
            self.budget, self.by, [replace(arm, name=name) for name, arm in zip(names, described, strict=True)]
        )


def choose_dimension(plan: LaunchPlan, jobs: Sequence[SweepPoint], budget: str, baseline: str | None) -> str:
    """Choose the dimension to solve for a budget: n_kv_heads for the cache, if some number of key-value heads matches
    every arm and the sweep does not vary it; else the dimension in BUDGETS."""
    arms, heads = group_by_arm(jobs), "n_kv_heads"
    if budget != "kv" or any(find_key(word) == find_place(heads) for each in jobs for word in each.typed):
        return BUDGETS[budget]
    figure = functools.partial(find_figure, budget=budget, forecaster=Forecaster(measure=False))
    try:
        target = figure(arms[baseline or next(iter(arms))][0].planned)
        for own in arms.values():
            read_dimension(own[0], heads)
            solve_arm(plan, own[0], heads, figure, target)
    except (ConfigError, KeyError):  # an arm without such heads, or an unknown baseline, which is said later
        return BUDGETS[budget]
    return heads


def find_faults(arms: Mapping[str, Sequence[SweepPoint]], budget: str, by: str, baseline: str) -> list[str]:
    """List the faults of a request that are known before any cost is computed."""
    if baseline not in arms:
        return [f"baseline: there is no arm {baseline!r}, found: {', '.join(arms)}"]
    faults = []
    if budget in ("data", "time") and by != "steps":
        faults.append(f"match_by: is {by}, and {budget} is matched by the number of steps (leave it out)")
    if budget in ("params", "active", "non_embedding", "kv") and by == "steps":
        faults.append(f"match_by: is steps, which change no {budget} (d_ff, n_layers or d_model)")
    stated = {word for own in arms.values() for word in own[0].typed if find_key(word) == find_place(by)}
    if len(stated) > 1:
        faults.append(f"match_by: is {by}, which the sweep varies itself, found {', '.join(sorted(stated))} (another)")
    if len(arms) < 2:
        faults.append(f"match: there is one arm, {baseline} (two or more)")
    return faults


def find_place(by: str) -> str:
    """Return the key of a dimension in a training config."""
    return by if by == "steps" or by.startswith("model.") else f"model.{by}"


def change(typed: Sequence[str], by: str, value: int) -> list[str]:
    """Set a dimension in a job's overrides, replacing any other value."""
    place = find_place(by)
    return [*(each for each in typed if find_key(each) != place), f"{place}={value}"]


def find_figure(planned: TrainingPlan, *, budget: str, forecaster: Forecaster) -> float:
    """Compute the cost of a run in a budget. Raises ConfigError if it is not known before the run."""
    if budget == "time":
        timed = forecaster.forecast(planned)
        if timed.timing is None:
            raise ConfigError(f"its steps cannot be timed, {timed.fault}")
        return timed.timing.predict_training(planned)
    value = getattr(price_run(planned, memory=False), FIGURES[budget])
    if not value:
        raise ConfigError(f"its {budget} are {'none' if value == 0 else 'not known before it runs'} (another budget)")
    return value


def solve_arm(
    plan: LaunchPlan, job: SweepPoint, by: str, figure: Callable[[TrainingPlan], float], target: float
) -> int | None:
    """Find the value of a dimension that brings an arm's cost within 1 % of the target; None if no change is needed.
    Multiples of 8 are preferred for widths. Raises ConfigError with the nearest value if none is within 1 %."""
    if abs(figure(job.planned) / target - 1) <= TOLERANCE:
        return None
    start = read_dimension(job, by)
    heads = list_divisors(job) if by.rpartition(".")[2] == "n_kv_heads" else ()

    @functools.cache
    def share(value: int) -> float:
        return figure(plan.compose_point(change(job.typed, by, value), job.arm).planned) / target

    if len({share(each) for each in heads or (start, 2 * start)}) == 1:
        raise ConfigError(f"{by} changes nothing of it (--match-by names another dimension)")
    tried = [min(heads, key=lambda value: abs(share(value) - 1))] if heads else []
    if heads and abs(share(tried[0]) - 1) <= TOLERANCE:
        return tried[0]
    for grain in () if heads else list_grains(plan, job, by):
        value = search(lambda steps, grain=grain: share(steps * grain), max(1, start // grain)) * grain
        tried.append(value)
        if abs(share(value) - 1) <= TOLERANCE:
            return value
    best = min(tried, key=lambda value: abs(share(value) - 1))
    found = f"the nearest, {by}={best}, is {share(best):.3f} times the baseline's"
    raise ConfigError(f"cannot be matched by {by} within 1 %, found {found} (--match-by names another dimension)")


def search(share: Callable[[int], float], start: int) -> int:
    """Find the integer whose `share` (cost ÷ target) is nearest to 1: double or halve from a start, then bisect."""
    low = high = start
    while share(low) > 1 and low > 1:
        low = max(1, low // 2)
    while share(high) <= 1 and high < MOST:
        high *= 2
    found = find_crossing(share, low, high)
    return min((each for each in (found, found + 1) if low <= each <= high), key=lambda each: abs(share(each) - 1))


def list_grains(plan: LaunchPlan, job: SweepPoint, by: str) -> tuple[int, ...]:
    """List the step sizes by which a dimension is solved, the preferred one first. If the head width follows from
    d_model, the step sizes keep the head width even."""
    if by.rpartition(".")[2] == "d_ff":
        return 8, 1
    if by.removeprefix("model.") != "d_model":
        return (1,)
    model = plan.loader.compose_job(job.typed).cfg.model
    heads, width = (OmegaConf.to_container(model, resolve=False).get(name) for name in ("n_heads", "head_dim"))  # type: ignore[union-attr]
    return (8, 2) if isinstance(width, int) or not isinstance(heads, int) else (math.lcm(8, 2 * heads), 2 * heads)


def list_divisors(job: SweepPoint) -> tuple[int, ...]:
    """List the numbers of key-value heads that a job's heads can share: the divisors of n_heads."""
    heads = read_dimension(job, "n_heads")
    return tuple(each for each in range(1, heads + 1) if heads % each == 0)


def read_dimension(job: SweepPoint, by: str) -> int:
    """Read the value of a dimension in a job's config. Raises ConfigError if it is no positive whole number."""
    config = job.planned.config
    value = look_up({**config, "model": resolve(dict(config["model"]))}, find_place(by))
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{by} is {value!r} there (--match-by names a dimension that its model has)")
    return value


def describe_arm(was: str, jobs: Sequence[SweepPoint], asked: Matching, forecaster: Forecaster) -> MatchedArm:
    """Make the MatchedArm of solved jobs, with their costs. The caller sets the arm's new name."""
    price = price_run(jobs[0].planned, memory=False)
    names = dict.fromkeys((*CURRENCIES, FIGURES.get(asked.budget, "params")))
    priced = {**vars(price), "all_flops": price.all_flops, "elementwise": price_elementwise(jobs[0].planned)}
    figures = {each: value for each in names if (value := priced[each]) is not None}
    value = read_dimension(jobs[0], asked.by)
    if find_place(asked.by) == "model.n_kv_heads":  # the attention's own: mha reads no such key
        blocks = (each for tower in jobs[0].planned.spec.towers().values() for each in tower.blocks.values())
        value = next((each.attention.n_kv_heads for each in blocks if hasattr(each.attention, "n_kv_heads")), value)
    timing = forecaster.forecast(jobs[0].planned).timing if asked.budget == "time" else None
    return MatchedArm(was, was, jobs, value, figures, None if timing is None else timing.error)
