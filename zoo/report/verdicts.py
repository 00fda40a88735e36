"""Compare the arms of an experiment with a baseline in one metric, with their costs: the verdicts of `zoo report`.

Runs of one seed start from equal weights where names and shapes are equal, and read the same rows in the same order.
So losses are compared in pairs, seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from zoo.analysis.verdict.comparison import Comparison, Place, compare_arms, find_front, negate
from zoo.analysis.verdict.difference import LossNoise
from zoo.analysis.verdict.power import LEVEL
from zoo.analysis.verdict.row_noise import bootstrap_rows
from zoo.analysis.verdict.speedup import PowerLaw, Speedup, find_speedup
from zoo.analysis.verdict.spread_bounds import find_variance_bounds
from zoo.errors import ConfigError
from zoo.report import rate_table
from zoo.report.arms import ALIKE, CURRENCIES, NAMES, Arm, find_unmatched
from zoo.report.tables import TextTable, drop_empty
from zoo.units import format_count, format_number, format_p, format_seconds, format_si, say_p

FORMS: dict[str, Any] = {
    **dict.fromkeys(("flops", "elementwise"), format_si),
    **dict.fromkeys(("cache_bytes", "peak_memory"), lambda value: format_si(value, "B")),
    "seconds": "{:.1f}".format,
}

SPENT = ("tokens", "flops", "seconds")
"""The costs of training in which speedups are given."""

FORECAST = ("seconds", "peak_memory")
"""Figures that a sweep predicts before its runs measure them."""

LEAST_PEAK = 1e6
"""Bytes below which a memory peak is not the run's own: the run reused memory that an earlier run in the process had
freed."""

FEW = 5
"""Number of seeds below which the p-value of pooled variance is always shown, and pairing is not judged."""

FORECASTS = ("arm", *(word for name in ("seconds", "peak memory") for word in (name, "predicted", "ratio")))
HEADER = ("arm", "seeds", "{metric} ± σ", "difference", "p", "verdict")
VALUES = (
    *("arm", "seeds", "mean", "deviation", "difference", "low", "high", "p", "p_holm", "p_equivalent", "p_pooled"),
    *("pairing", "detectable", "diverged", "verdict", "needed", *CURRENCIES),
)
COSTS = ("arm", *(NAMES.get(name, name) for name in CURRENCIES))
SPEEDUPS = ("arm", *(f"speedup in {NAMES.get(name, name)}" for name in SPENT))


@dataclass(frozen=True)
class Report:
    """Arms compared with a baseline in one metric."""

    arms: Sequence[Arm]
    baseline: Arm
    metric: str
    found: Mapping[str, Comparison]
    tuning: Mapping[str, float] = field(default_factory=dict)
    """The standard error that a searched learning rate adds to an arm's mean, by arm; empty without searches."""
    level: float = LEVEL
    """The significance level; in a sequential design, the level of the present look."""
    higher: bool = False
    """Whether more of the metric is better."""
    family: str = "all arms"
    """The comparisons over which p-values and intervals are corrected (Holm)."""
    decays: Sequence[PowerLaw] = ()
    """The baseline's scaling law of loss by budget, then the laws of bootstrap resamples; empty without a law."""

    @classmethod
    def make(
        cls,
        arms: Sequence[Arm],
        baseline: str | None,
        metric: str,
        margin: float | None = None,
        level: float = LEVEL,
        higher: bool = False,
    ) -> Report:
        """Compare arms with the arm named `baseline`, or with the first, corrected over all arms. Raises ConfigError
        for fewer than two arms, or an unknown baseline."""
        names = [each.name for each in arms]
        if len(arms) < 2:
            raise ConfigError(f"arms: there are {len(arms)}, found {', '.join(names) or 'no run that is done'} (two)")
        if baseline is not None and baseline not in names:
            raise ConfigError(f"baseline: there is no arm {baseline!r}, found: {', '.join(names)}")
        first = next(each for each in arms if each.name == (baseline or names[0]))
        values = {each.name: each.values(metric) for each in arms}
        losses = negate(values) if higher else values
        searches = {each.name: each.search for each in arms if each.search} if metric == "val_loss" else {}
        tuning = rate_table.find_rate_errors(searches, rate_table.find_noise(values.values(), searches))
        least = {each.name: each.least_noise(metric) for each in arms}
        compared = compare_arms(losses, first.name, level, margin, tuning, least)
        found = {arm: each.negate() if higher else each for arm, each in compared.items()}
        order = [first, *(each for each in arms if each is not first)]
        return cls(order, first, metric, found, tuning, level, higher)

    @property
    def others(self) -> Sequence[Arm]:
        return self.arms[1:]

    @property
    def tested(self) -> bool:
        """Whether an arm has two runs or more, as any test needs."""
        return any(len(each.runs) > 1 for each in self.arms)

    @property
    def crowding(self) -> float:
        """The highest load per CPU at which a run started."""
        return max(each.crowding for each in self.arms)

    @property
    def comparable(self) -> Sequence[str]:
        """The costs in which arms can be compared: without seconds, if other programs slowed a run."""
        return CURRENCIES if self.crowding <= 1 else [each for each in CURRENCIES if each != "seconds"]

    def seconds(self) -> float:
        """Return the mean seconds of a run, over all runs of all arms."""
        return mean(float(run.outcome["seconds"] or 0) for each in self.arms for run in each.finished.values())

    def unmatched(self, arm: Arm) -> dict[str, float]:
        """Divide an arm's costs by the baseline's, for the `comparable` costs that differ by more than 1 %."""
        return find_unmatched(arm.costs, self.baseline.costs, self.comparable)

    def speedups(self, arm: Arm) -> dict[str, Speedup]:
        """Compute the effective speedup in tokens, FLOPs and seconds (`comparable`): how many times the arm's budget
        the baseline would need to reach the arm's loss. Empty without a law of the baseline."""
        if not self.decays:
            return {}
        own, theirs = (keep_finite(each.values(self.metric)) for each in (arm, self.baseline))
        if not own or not theirs:
            return {}
        errors = (self.tuning.get(self.baseline.name, 0.0), self.tuning.get(arm.name, 0.0))
        longer = find_speedup(own, theirs, self.decays, errors)
        ratios = {name: self.baseline.costs[name] / arm.costs[name] for name in self.comparable if arm.costs.get(name)}
        return {name: longer.times(ratio) for name, ratio in ratios.items() if name in SPENT}

    def fronts(self) -> dict[str, dict[str, Place]]:
        """Place the arms relative to the Pareto front of loss and each cost but elementwise FLOPs (approximate)."""
        losses = {each.name: each.values(self.metric) for each in self.arms}
        losses, found = negate(losses) if self.higher else losses, {}
        for name in (each for each in self.comparable if each != "elementwise"):
            costs = {each.name: each.costs[name] for each in self.arms if name in each.costs}
            if len(costs) == len(self.arms) and max(costs.values()) > min(costs.values()) * (1 + ALIKE):
                found[name] = find_front(losses, costs, ALIKE)
        return found

    def sentence(self, arm: Arm) -> str:
        """Write the verdict on an arm, with its basis: margin, diverged runs, and the power of the design."""
        each = self.found[arm.name]
        said = f"equivalent within ±{each.margin:g}" if each.verdict == "equivalent" else name_verdict(each)
        if any(each.diverged):
            own, theirs = each.diverged
            lost = f"{own} of {len(arm.runs)} runs diverged, {theirs} of {len(self.baseline.runs)}"
            exact = "" if each.divergence is None else f" (Fisher's exact {say_p(each.divergence, self.level)})"
            said += f"; by an exact rank test, diverged runs last: {lost} of {self.baseline.name}{exact}"
        return said if each.verdict != "inconclusive" else f"{said} ({self._describe_design(each)})"

    def _describe_design(self, each: Comparison) -> str:
        """Describe the smallest difference that an inconclusive comparison could detect, and the seeds and time that a
        new experiment would need."""
        known = f"n = {each.n}" if each.paired else f"n = {each.n}, no seed in common"
        if each.p is None:
            unknown = "a learning rate's error is unknown (a single rate of its search finished)"
            return f"{known}: {unknown if each.rate_error is None else 'one seed has no spread'}"
        if each.detectable is None:
            return known
        known += f": too few to detect less than {each.detectable:.2g}"
        if each.needed is None or each.freedom is None:
            return known
        low, high = (max(2, round(each.needed * bound)) for bound in find_variance_bounds(each.freedom))
        new = f"about {each.needed:,} seeds ({low:,} to {high:,}: n = {each.n} leaves σ uncertain)"
        takes = f"{new}, {format_seconds(each.needed * 2 * self.seconds())}"
        return f"{known}; detecting the difference found takes a new experiment of {takes}"

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
                own |= {"row_error": self.row_error(each)}
                own |= {"speedup": {name: vars(factor) for name, factor in self.speedups(each).items()}}
            arms.append(own)
        return {
            "baseline": self.baseline.name,
            "metric": self.metric,
            "arms": arms,
            "pareto": self.fronts() if self.tested else {},
            "search": self.searches(),
        }

    def values(self) -> list[list[Any]]:
        """List a row of exact values per arm, the baseline first, with the columns of `VALUES`."""
        found = []
        for arm in self.arms:
            row: list[Any] = [arm.name, len(arm.runs), *self.moments(arm)]
            each = self.found.get(arm.name)
            row += [None] * 12 if each is None else self._compared(each)
            found.append([*row, *(arm.costs.get(name) for name in CURRENCIES)])
        return found

    @staticmethod
    def _compared(each: Comparison) -> list[Any]:
        low, high = each.interval or (None, None)
        tests = [each.p, each.adjusted, each.equivalence, each.pooled, each.pairing, each.detectable, each.diverged[0]]
        return [each.difference, low, high, *tests, each.verdict, each.needed]

    def moments(self, arm: Arm) -> tuple[float | None, float | None]:
        """Return the mean and the standard deviation of an arm's finite values; None if there are too few."""
        values = list(keep_finite(arm.values(self.metric)).values())
        return mean(values) if values else None, stdev(values) if len(values) > 1 else None

    def _row(self, arm: Arm) -> list[str]:
        """Return an arm's row of texts, with the columns of `HEADER`."""
        middle, spread = self.moments(arm)
        row = [arm.name, str(len(arm.runs)), "diverged" if middle is None else format_spread(middle, spread)]
        if arm is self.baseline:
            return [*row, "", "", "baseline"]
        each = self.found[arm.name]
        half = None if each.interval is None else (each.interval[1] - each.interval[0]) / 2
        apart = "" if each.difference is None else format_spread(each.difference, half, "+")
        return [*row, apart, format_p(each.adjusted, self.level), name_verdict(each)]

    def tables(self) -> list[TextTable]:
        """List the tables that have rows."""
        header = [each.format(metric=self.metric) for each in HEADER]
        made: list[Any] = [
            ("Verdicts", header, list(map(self._row, self.arms)), range(1, 5)),
            ("Costs", COSTS, self.cost_rows(), range(1, len(COSTS))),
            ("Effective speedup", SPEEDUPS, self.speedup_rows(), range(1, 4)),
            ("Learning rates", rate_table.HEADER, rate_table.list_rows(self.searches(), self.noise()), (1, 2, 3)),
            ("Predicted and measured", *drop_empty(FORECASTS, self.forecast_rows()), range(1, 7)),
        ]
        return [
            TextTable(title, header, rows, [at for at in right if at < len(header)])
            for title, header, rows, right in made
            if rows
        ]

    def hints(self) -> list[str]:
        """Write a line for each arm whose verdict needs more explanation than its table has."""
        said = {each.name: self.sentence(each) for each in self.others}
        lines = [f"{name}: {text}" for name, text in said.items() if text != self.found[name].verdict]
        return [*lines, *self.second_readings()]

    def second_readings(self) -> list[str]:
        """Write lines that qualify the verdicts: p-values with the variance pooled over all arms, where seeds are few
        or a verdict would change; differences that may not hold on other rows; the noise that pairing removes; and why
        seconds are not compared."""
        lines, pooled = [], [f"{name} {say_p(p, self.level)}" for name, p in self._list_pooled()]
        if pooled:
            lines.append(f"with the variance pooled over all arms (uncorrected): {', '.join(pooled)}")
        for arm in self.others:
            each, error = self.found[arm.name], self.row_error(arm)
            if error is None or each.difference is None or each.verdict not in ("better", "worse"):
                continue
            if 2 * error > abs(each.difference):
                what = f"the difference {each.difference:+.4f} varies by ± {2 * error:.4f} over validation rows"
                lines.append(
                    f"{arm.name}: {what}: it may not hold on other text (eval_batches=null reads the whole split)"
                )
        lines += self._describe_pairing()
        if self.crowding > 1:
            lines.append(f"seconds are not compared: a run started at a load of {self.crowding:.1f} times the CPUs")
        return lines

    def _list_pooled(self) -> Iterable[tuple[str, float]]:
        """Yield arms and their p-values of pooled variance, if the arm has few seeds or the p-value would change its
        verdict."""
        for name, each in self.found.items():
            if each.pooled is None or each.verdict == "equivalent":
                continue
            if each.n < FEW or (each.pooled < self.level) != (each.verdict in ("better", "worse")):
                yield name, each.pooled

    def _describe_pairing(self) -> list[str]:
        """Write a line with the σ of each difference, in pairs and of unpaired runs; no line if no arm has both."""
        known = [
            (name, each.noise * math.sqrt(each.n), each.pairing)
            for name, each in self.found.items()
            if each.noise and each.pairing
        ]
        if not known:
            return []
        said = ", ".join(f"{name} {sigma:.2g} and {sigma / ratio:.2g}" for name, sigma, ratio in known)
        few = max(each.n for each in self.found.values()) < FEW
        hurts = not few and mean(ratio for *_, ratio in known) > 1
        return [f"σ of a difference in pairs, and of unpaired runs: {said}{': pairing does not help' if hurts else ''}"]

    def row_error(self, arm: Arm) -> float | None:
        """Estimate the standard error, over validation rows, of an arm's difference in validation loss. None if runs
        have no losses by piece, or read different rows."""
        if self.metric != "val_loss":
            return None
        own, theirs = arm.pieces(), self.baseline.pieces()
        return bootstrap_rows([(own[seed], theirs[seed]) for seed in sorted(own.keys() & theirs.keys())])

    def noise(self) -> LossNoise:
        """Find the noise of the loss that the arms' searches minimise."""
        return rate_table.find_noise([each.values("val_loss") for each in self.arms if each.search], self.searches())

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
            pairs = [(run.result.get(name), run.predicted.get(name)) for run in arm.finished.values()]
            known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
            if known:
                found[name] = (mean(a for a, _ in known), mean(b for _, b in known))
        return found

    def forecast_rows(self) -> list[list[str]]:
        """List a row per arm with figures that were both predicted and measured: measured, predicted, and their ratio.
        Peaks below LEAST_PEAK are left out."""
        rows = []
        for arm in self.arms:
            least = {"peak_memory": LEAST_PEAK}
            own = {name: each for name, each in self.forecasts(arm).items() if each[0] >= least.get(name, 0)}
            cells = [_format_forecast(name, *own[name]) if name in own else ["", "", ""] for name in FORECAST]
            rows.append([arm.name, *(text for each in cells for text in each)])
        return [row for row in rows if any(row[1:])]

    def searches(self) -> dict[str, Mapping[str, Any]]:
        """Return the searches of the learning rates, by arm; empty without any."""
        return {each.name: each.search for each in self.arms if each.search}

    def speedup_rows(self) -> list[list[str]]:
        """List a row for each arm but the baseline, with its effective speedup in tokens, FLOPs and seconds; empty
        without a law."""
        return [[each.name, *_format_speedups(self.speedups(each))] for each in self.others if self.decays]


def name_verdict(each: Comparison) -> str:
    """Return the display name of a verdict: `cannot be judged` if there was no test, as with one seed."""
    return "cannot be judged" if each.verdict == "inconclusive" and each.p is None else each.verdict


def keep_finite(values: Mapping[int, float]) -> dict[int, float]:
    """Leave out the seeds whose runs diverged."""
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _format_speedups(found: Mapping[str, Speedup]) -> Iterable[str]:
    for name in SPENT:
        each = found.get(name)
        if each is None or math.isnan(each.factor):
            yield ""
        elif math.isinf(each.factor):
            yield "∞ (the baseline never reaches it)"
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
    """Format a value ± its spread, to two digits of the spread: `3.214 ± 0.013`, `−0.041 ± 0.020`. Without a spread,
    four decimals are given."""
    digits = min(max(1 - math.floor(math.log10(spread)), 2), 6) if spread else 4
    said = format_number(value, f"{sign}.{digits}f")
    return f"{said} ± {spread:.{digits}f}" if spread else said
