"""The arms of an experiment: runs that differ in nothing but their seed, held against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from zoo.analysis.verdict import Comparison, compare_arms
from zoo.costs import price
from zoo.errors import ConfigError
from zoo.report.history import RunRecord
from zoo.report.units import format_count, format_si

SEED = "seed"
ASIDE = (SEED, "hydra.")
"""Overrides that make no other arm."""

CURRENCIES = ("params", "tokens", "flops", "kv_bytes", "seconds")
"""What arms may cost: parameters, tokens and FLOPs of training, bytes of cache a token, seconds of training."""

NAMES = {"params": "parameters", "kv_bytes": "KV bytes a token", "flops": "training FLOPs"}

ALIKE = 0.01
"""The difference of a cost within which arms are matched in it."""


@dataclass(frozen=True)
class Arm:
    """The done runs of an arm, by seed."""

    name: str
    runs: Mapping[int, RunRecord]

    def values(self, metric: str) -> dict[int, float]:
        """The metric of each run, by seed. Raises ConfigError for a run without it."""
        found = {seed: run.outcome.get(metric, run.result.get(metric)) for seed, run in self.runs.items()}
        missing = [self.runs[seed].folder for seed, value in found.items() if value is None]
        if missing:
            raise ConfigError(*(f"{folder}: has no {metric} (--metric NAME names another)" for folder in missing))
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def costs(self) -> dict[str, float]:
        """The mean of each currency over the runs."""
        outcomes = [run.outcome for run in self.runs.values()]
        found = {
            name: mean(float(each[name]) for each in outcomes)
            for name in CURRENCIES
            if all(each.get(name) is not None for each in outcomes)
        }
        cache = price(next(iter(self.runs.values())).spec)["kv_cache"]
        return found if cache is None else {**found, "kv_bytes": float(cache["bytes_per_token"])}


def group_arms(records: Sequence[RunRecord]) -> tuple[list[Arm], list[str]]:
    """Group done runs by their overrides, seeds left out; an arm is named by those that not all runs share. Gives the
    arms in order, and a line for each run that is not done. Raises ConfigError for two runs of one arm and seed."""
    unfinished = [f"{each.folder}: is {each.status}, and left out" for each in records if each.status != "done"]
    done = [each for each in records if each.status == "done"]
    words = [[word for word in each.result.get("overrides", ()) if not word.startswith(ASIDE)] for each in done]
    shared = set.intersection(*map(set, words)) if words else set()
    arms: dict[str, dict[int, RunRecord]] = {}
    faults = []
    for record, own in zip(done, words, strict=True):
        name = " ".join(_shorten(word) for word in own if word not in shared) or "all runs"
        seed = int(record.config.get(SEED, 0))
        if (other := arms.setdefault(name, {}).setdefault(seed, record)) is not record:
            faults.append(f"{record.folder}: is another run of {name} with seed {seed}, beside {other.folder} (one)")
    if faults:
        raise ConfigError(*faults)
    return [Arm(name, dict(sorted(by_seed.items()))) for name, by_seed in arms.items()], unfinished


def _shorten(word: str) -> str:
    """`attention@model.attention=mqa` as `attention=mqa`, and `model.n_layers=2` as `n_layers=2`."""
    key, _, value = word.partition("=")
    return f"{key.partition('@')[0].removeprefix('model.')}={value}"


@dataclass(frozen=True)
class Report:
    """Arms held against a baseline in one metric, of which less is better."""

    arms: Sequence[Arm]
    baseline: Arm
    metric: str
    found: Mapping[str, Comparison]
    seconds: float
    """What a run takes, on average."""

    @classmethod
    def make(cls, arms: Sequence[Arm], baseline: str | None, metric: str) -> Report:
        """Compare arms with the one of this name, or the first. Raises ConfigError where nothing can be compared."""
        names = [each.name for each in arms]
        if len(arms) < 2:
            raise ConfigError(f"arms: there are {len(arms)}, found {', '.join(names) or 'no run that is done'} (two)")
        if baseline is not None and baseline not in names:
            raise ConfigError(f"baseline: there is no arm {baseline!r}, found: {', '.join(names)}")
        first = next(each for each in arms if each.name == (baseline or names[0]))
        found = compare_arms({each.name: each.values(metric) for each in arms}, first.name)
        lonely = [each.name for each in arms if each is not first and each.name not in found]
        if lonely:
            raise ConfigError(*(f"arms: {name} shares no seed with {first.name} (the same seeds)" for name in lonely))
        seconds = [float(run.outcome["seconds"] or 0) for each in arms for run in each.runs.values()]
        return cls(arms, first, metric, found, mean(seconds))

    def unmatched(self, arm: Arm) -> dict[str, float]:
        """How many times the baseline's cost an arm has, of the currencies in which they differ by more than 1 %."""
        own, theirs = arm.costs(), self.baseline.costs()
        ratios = {name: own[name] / theirs[name] for name in own if theirs.get(name)}
        return {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > ALIKE}

    def sentence(self, arm: Arm) -> str:
        """The verdict on an arm, in one of three sentences."""
        each = self.found[arm.name]
        if each.verdict != "not told apart":
            return each.verdict
        if each.needed is None:
            return f"not told apart (n = {each.n}{'; one pair has no spread' if each.n < 2 else ''})"
        minutes = max(0, each.needed - each.n) * 2 * self.seconds / 60
        return f"not told apart (n = {each.n}; {each.needed:,} seeds, about {_format_time(minutes)}, would tell)"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        arms = []
        for each in self.arms:
            compared = self.found.get(each.name)
            own = {"arm": each.name, self.metric: each.values(self.metric), "costs": each.costs()}
            arms.append(own if compared is None else {**own, **vars(compared), "unmatched": self.unmatched(each)})
        return {"baseline": self.baseline.name, "metric": self.metric, "arms": arms}

    def rows(self) -> list[list[str]]:
        """A row for each arm, the baseline first."""
        order = [self.baseline, *(each for each in self.arms if each is not self.baseline)]
        return [self._row(each) for each in order]

    def _row(self, arm: Arm) -> list[str]:
        values = list(arm.values(self.metric).values())
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        row = [arm.name, str(len(values)), f"{mean(values):.4f}{spread}"]
        if arm is self.baseline:
            return [*row, "", "", "baseline"]
        each = self.found[arm.name]
        between = "" if each.interval is None else f"[{each.interval[0]:+.4f}, {each.interval[1]:+.4f}]"
        return [*row, f"{each.difference:+.4f} {between}".strip(), _format_p(each.adjusted), self.sentence(arm)]

    def cost_rows(self) -> list[list[str]]:
        """What each arm costs, in every currency."""
        found = []
        for arm in [self.baseline, *(each for each in self.arms if each is not self.baseline)]:
            costs, apart = arm.costs(), {} if arm is self.baseline else self.unmatched(arm)
            cells = [
                "" if name not in costs else _format_cost(name, costs[name], apart.get(name)) for name in CURRENCIES
            ]
            found.append([arm.name, *cells])
        return found


HEADER = ("arm", "seeds", "{metric}", "difference", "p", "verdict")


def name_costs() -> tuple[str, ...]:
    """The header of the costs."""
    return ("arm", *(NAMES.get(name, name) for name in CURRENCIES))


def _format_cost(name: str, value: float, ratio: float | None) -> str:
    shown = f"{value:.1f}" if name == "seconds" else format_count(value) if name != "flops" else format_si(value)
    return shown if ratio is None else f"{shown} (×{ratio:.2f})"


def _format_p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _format_time(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:,.0f} hours"
