"""Compare the arms of an experiment with a baseline in one metric, with their costs: the verdicts of `zoo report`.

Runs of one seed start from equal weights where names and shapes are equal, and read the same rows in the same order.
So losses are compared in pairs, seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from zoo.analysis.speedup import PowerLaw, Speedup, find_speedup
from zoo.analysis.verdict import Comparison, compare_arms, find_front
from zoo.errors import ConfigError
from zoo.report import rate_table
from zoo.report.arms import ALIKE, CURRENCIES, Arm
from zoo.report.units import format_count, format_si

NAMES = {"params": "parameters", "flops": "training FLOPs", "cache_bytes": "KV cache per sequence"}
FORMS: dict[str, Any] = {
    "flops": format_si,
    "cache_bytes": lambda value: format_si(value, "B"),
    "peak_memory": lambda value: format_si(value, "B"),
    "seconds": "{:.1f}".format,
}

SPENT = ("tokens", "flops", "seconds")
"""The costs of training in which speedups are given."""

FORECAST = ("seconds", "peak_memory")
"""Figures that a sweep predicts before its runs measure them."""

FORECASTS = ("arm", *(word for name in ("seconds", "peak memory") for word in (name, "predicted", "ratio")))
HEADER = ("arm", "seeds", "{metric} ± σ", "difference, 95 %", "p", "verdict")
VALUES = (
    "arm",
    "seeds",
    "mean",
    "deviation",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "needed",
    *CURRENCIES,
)
COSTS = ("arm", *(NAMES.get(name, name) for name in CURRENCIES))
SPEEDUPS = ("arm", *(f"speedup in {NAMES.get(name, name)}" for name in SPENT))


@dataclass(frozen=True)
class Report:
    """Arms compared with a baseline in one metric; lower is better."""

    arms: Sequence[Arm]
    baseline: Arm
    metric: str
    found: Mapping[str, Comparison]
    decays: Sequence[PowerLaw] = ()
    """The baseline's scaling law of loss by budget, then the laws of bootstrap resamples; empty without a law."""

    @classmethod
    def make(cls, arms: Sequence[Arm], baseline: str | None, metric: str) -> Report:
        """Compare arms with the arm named `baseline`, or with the first. Raises ConfigError for fewer than two arms, or
        an unknown baseline."""
        names = [each.name for each in arms]
        if len(arms) < 2:
            raise ConfigError(f"arms: there are {len(arms)}, found {', '.join(names) or 'no run that is done'} (two)")
        if baseline is not None and baseline not in names:
            raise ConfigError(f"baseline: there is no arm {baseline!r}, found: {', '.join(names)}")
        first = next(each for each in arms if each.name == (baseline or names[0]))
        found = compare_arms({each.name: each.values(metric) for each in arms}, first.name)
        order = [first, *(each for each in arms if each is not first)]
        return cls(order, first, metric, found)

    @property
    def others(self) -> Sequence[Arm]:
        """The arms other than the baseline."""
        return self.arms[1:]

    def seconds(self) -> float:
        """Return the mean seconds of a run, over all runs of all arms."""
        return mean(float(run.outcome["seconds"] or 0) for each in self.arms for run in each.runs.values())

    def unmatched(self, arm: Arm) -> dict[str, float]:
        """Divide an arm's costs by the baseline's, for the costs (CURRENCIES) that differ by more than 1 %."""
        theirs = self.baseline.costs
        ratios = {name: own / theirs[name] for name, own in arm.costs.items() if theirs.get(name)}
        return {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > ALIKE}

    def speedups(self, arm: Arm) -> dict[str, Speedup]:
        """Compute the effective speedup in tokens, FLOPs and seconds: how many times the arm's budget the baseline
        would need to reach the arm's loss. Empty without a law of the baseline."""
        if not self.decays:
            return {}
        own, theirs = arm.values(self.metric), self.baseline.values(self.metric)
        pairs = [(theirs[seed], own[seed]) for seed in own.keys() & theirs.keys()]
        if not pairs:
            pairs = [(mean(theirs.values()), value) for value in own.values()]
        longer = find_speedup(pairs, self.decays)
        ratios = {name: self.baseline.costs[name] / arm.costs[name] for name in SPENT if arm.costs.get(name)}
        return {name: longer.times(ratio) for name, ratio in ratios.items()}

    def fronts(self) -> dict[str, list[str]]:
        """Find the arms on the Pareto front of loss and each cost in which arms differ."""
        losses = {each.name: each.values(self.metric) for each in self.arms}
        found = {}
        for name in CURRENCIES:
            costs = {each.name: each.costs[name] for each in self.arms if name in each.costs}
            if len(costs) == len(self.arms) and max(costs.values()) > min(costs.values()) * (1 + ALIKE):
                found[name] = find_front(losses, costs, ALIKE)
        return found

    def sentence(self, arm: Arm) -> str:
        """Write the verdict on an arm: better, worse, or no significant difference (with the number of seeds that would
        show one)."""
        each = self.found[arm.name]
        if each.verdict != "no significant difference":
            return each.verdict
        known = f"n = {each.n}" if each.paired else f"n = {each.n}, no seed in common"
        if each.needed is None:
            return f"no significant difference ({known}{'; one seed has no spread' if each.n < 2 else ''})"
        minutes = max(0, each.needed - each.n) * 2 * self.seconds() / 60
        return (
            f"no significant difference ({known}; {each.needed:,} seeds, about {_format_time(minutes)}, would show one)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the report as plain data."""
        arms = []
        for each in self.arms:
            own = {"arm": each.name, self.metric: each.values(self.metric), "costs": each.costs}
            own["forecast"] = {
                name: {"measured": measured, "predicted": predicted}
                for name, (measured, predicted) in self.forecasts(each).items()
            }
            if each is not self.baseline:
                own |= {**vars(self.found[each.name]), "unmatched": self.unmatched(each)}
                own |= {"speedup": {name: vars(factor) for name, factor in self.speedups(each).items()}}
            arms.append(own)
        return {
            "baseline": self.baseline.name,
            "metric": self.metric,
            "arms": arms,
            "pareto": self.fronts(),
            "search": self.searches(),
        }

    def values(self) -> list[list[Any]]:
        """List a row of exact values per arm, the baseline first, with the columns of `VALUES`."""
        found = []
        for arm in self.arms:
            losses = list(arm.values(self.metric).values())
            row: list[Any] = [arm.name, len(losses), mean(losses), stdev(losses) if len(losses) > 1 else None]
            each = self.found.get(arm.name)
            row += [None] * 7 if each is None else self._compared(each)
            found.append([*row, *(arm.costs.get(name) for name in CURRENCIES)])
        return found

    @staticmethod
    def _compared(each: Comparison) -> list[Any]:
        low, high = each.interval or (None, None)
        return [each.difference, low, high, each.p, each.adjusted, each.verdict, each.needed]

    def _row(self, arm: Arm) -> list[str]:
        """Give an arm's row of texts, with the columns of `HEADER`."""
        values = list(arm.values(self.metric).values())
        row = [arm.name, str(len(values)), format_spread(mean(values), stdev(values) if len(values) > 1 else None)]
        if arm is self.baseline:
            return [*row, "", "", "baseline"]
        each = self.found[arm.name]
        half = None if each.interval is None else (each.interval[1] - each.interval[0]) / 2
        return [*row, format_spread(each.difference, half, "+"), format_p(each.adjusted), each.verdict]

    def tables(self) -> list[tuple[str, Sequence[str], list[list[str]], Sequence[int]]]:
        """List the tables that have rows: title, header, rows, and the columns to align right."""
        header = [each.format(metric=self.metric) for each in HEADER]
        made: list[Any] = [
            ("Verdicts", header, list(map(self._row, self.arms)), range(1, 5)),
            ("What they cost", COSTS, self.cost_rows(), range(1, 6)),
            ("Effective speedup", SPEEDUPS, self.speedup_rows(), range(1, 4)),
            ("Learning rates", rate_table.HEADER, rate_table.list_rows(self.searches()), (1, 2)),
            ("Predicted, and measured", FORECASTS, self.forecast_rows(), range(1, 7)),
        ]
        return [table for table in made if table[2]]

    def hints(self) -> list[str]:
        """Write a line for each arm without a significant difference: the number of seeds that would show one."""
        return [f"{each.name}: {said}" for each in self.others if "(" in (said := self.sentence(each))]

    def cost_rows(self) -> list[list[str]]:
        """List a row per arm with each of its costs (CURRENCIES), and their ratio to the baseline's if they differ by
        more than 1 %."""
        found = []
        for arm in self.arms:
            apart = {} if arm is self.baseline else self.unmatched(arm)
            cells = [format_cost(name, arm.costs.get(name), apart.get(name)) for name in CURRENCIES]
            found.append([arm.name, *cells])
        return found

    def forecasts(self, arm: Arm) -> dict[str, tuple[float, float]]:
        """Average an arm's measured and predicted figures over the runs that have both: (measured, predicted)."""
        found = {}
        for name in FORECAST:
            pairs = [(run.result.get(name), run.predicted.get(name)) for run in arm.runs.values()]
            known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
            if known:
                found[name] = (mean(a for a, _ in known), mean(b for _, b in known))
        return found

    def forecast_rows(self) -> list[list[str]]:
        """List a row per arm: each figure measured, predicted, and their ratio; empty without predictions."""
        rows = []
        for arm in self.arms:
            own = self.forecasts(arm)
            cells = [_format_forecast(name, *own[name]) if name in own else ["", "", ""] for name in FORECAST]
            rows.append([arm.name, *(text for each in cells for text in each)])
        return rows if any(any(row[1:]) for row in rows) else []

    def searches(self) -> dict[str, dict[str, Any]]:
        """Read the results of the sweeps' learning-rate searches, by arm."""
        return rate_table.read_searches(
            dict.fromkeys(run.folder.parent for arm in self.arms for run in arm.runs.values())
        )

    def speedup_rows(self) -> list[list[str]]:
        """List a row for each arm but the baseline, with its effective speedup in tokens, FLOPs and seconds; empty
        without a law."""
        if not self.decays:
            return []
        return [[each.name, *_format_speedups(self.speedups(each))] for each in self.others]


def _format_speedups(found: Mapping[str, Speedup]) -> Iterable[str]:
    for name in SPENT:
        each = found.get(name)
        if each is None or math.isnan(each.factor):
            yield ""
        elif math.isinf(each.factor):
            yield "∞ (the baseline never gets there)"
        else:
            between = "" if each.interval is None else " [{:.3f}, {:.3f}]".format(*each.interval)
            yield f"{each.factor:.3f}{between}"


def format_cost(name: str, value: float | None, ratio: float | None = None) -> str:
    """Format a cost in its unit, followed by `(×ratio)` if a ratio is given."""
    if value is None:
        return ""
    shown = FORMS.get(name, format_count)(value)
    return shown if ratio is None else f"{shown} (×{ratio:.2f})"


def _format_forecast(name: str, measured: float, predicted: float) -> list[str]:
    shown = FORMS.get(name, format_count)
    return [shown(measured), shown(predicted), f"{measured / predicted:.2f}" if predicted else ""]


def format_spread(value: float, spread: float | None, sign: str = "-") -> str:
    """Format a value ± its spread, to two digits of the spread: `3.214 ± 0.013`; four decimals without a spread."""
    if not spread:
        return f"{value:{sign}.4f}"
    digits = min(max(1 - math.floor(math.log10(spread)), 2), 6)
    return f"{value:{sign}.{digits}f} ± {spread:.{digits}f}"


def format_p(p: float | None) -> str:
    """Format a p-value with three decimals, or as `< 0.001`; empty for None."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _format_time(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:,.0f} hours"
