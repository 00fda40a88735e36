"""Judge a recipe: test the results of its arms against its expectations, and store the verdicts as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import TypeAdapter

from zoo.analysis.verdict.comparison import ArmPair, Comparison, compare_pairs, negate, pool_variance
from zoo.analysis.verdict.difference import UNKNOWN, LossNoise
from zoo.analysis.verdict.power import LEVEL
from zoo.analysis.verdict.rate_optimum import WindowBound
from zoo.disk import write_text
from zoo.experiments.experiment import Expectation, Experiment
from zoo.paths import recipes_dir
from zoo.report.rate_table import WINDOW, find_noise, find_rate_errors, find_windows
from zoo.untrusted.json_file import read_json

Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metrics by name, arm and seed."""


@dataclass(frozen=True)
class Ran:
    """The results of a recipe's arms: metrics (`values`), the costs of one run of each arm, and the seconds of all
    training."""

    values: Values
    costs: Mapping[str, Mapping[str, float]]
    seconds: float
    machine: str
    searches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The search of each arm's learning rate (`RateSearch.to_dict`)."""
    speedups: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The compute-optimal speedups of each arm of a ladder over the first arm (`SpeedupTrend`)."""
    least: Mapping[str, Mapping[str, LossNoise]] = field(default_factory=dict)
    """The least standard deviation of a run, by metric and arm, for the case that all seeds agree (`score_noise`)."""

    @property
    def noise(self) -> LossNoise:
        """The noise of a run's loss, for the searches of learning rates."""
        return find_noise(self.values.get("val_loss", {}).values(), self.searches)


@dataclass(frozen=True)
class Finding:
    """The outcome of an expectation. For a verdict, `found` is the verdict, `value` the difference of the arms' means,
    `interval` its confidence interval at the level of Holm's procedure, and `p` the p-value after Holm's correction
    over the experiment's comparisons. For bounds, `found` is "kept" or "not kept", `value` the mean, `interval` the
    range over seeds, and `p` None."""

    arm: str
    against: str | None
    expected: str
    paper: str
    found: str
    value: float | None
    interval: tuple[float, float] | None
    p: float | None
    holds: bool
    cost: str | None = None
    """The cost that was compared instead of the metric; `value` is then the ratio of the arms' costs."""
    metric: str | None = None
    margin: float | None = None
    """The margin of equivalence; None without one."""
    equivalence: float | None = None
    """The p-value of equivalence within the margin, after Holm's correction."""
    detectable: float | None = None
    """The smallest true difference that these seeds detect with a power of 0.8."""
    diverged: tuple[int, int] = (0, 0)
    """The numbers of diverged runs of the arm and of `against`."""
    noise: float | None = None
    """The standard error of the difference due to the noise of runs."""
    freedom: float | None = None
    """The degrees of freedom of `noise`."""
    counted: float = 0.0
    """The lower bound of `noise` that follows from the number of scored answers."""
    rate_error: float | None = 0.0
    """The standard error due to the searched learning rates, which all seeds share; None if unknown."""
    bound: WindowBound | None = None
    """If a compared window of learning rates is open: whether the true difference is at least or at most `value`. If
    both are open it is "unknown", and `value` is None."""

    @property
    def deciding_p(self) -> float | None:
        """The p-value of the test that decided the verdict: of equivalence, or of a difference."""
        return self.equivalence if self.found == "equivalent" else self.p


@dataclass(frozen=True)
class ExperimentOutcome:
    """The verdicts on a recipe, with the data, the machine and the training time."""

    recipe: str
    key: str
    form: str
    date: str
    machine: str
    seconds: float
    values: dict[str, dict[str, dict[str, float | None]]]
    """The values by metric, arm and seed; None for a run that diverged."""
    costs: dict[str, dict[str, float]]
    findings: list[Finding]
    level: float = LEVEL
    """The significance level of the look at which the experiment was judged."""
    registration: dict[str, Any] | None = None
    """The registration before the first run, with later changes (`zoo.experiments.registration`)."""
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The search of each arm's learning rate, from which the rate's error and window follow."""
    missing: list[str] = field(default_factory=list)
    """The missing runs, if the experiment was judged before its first look."""
    speedups: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The speedups of a ladder's arms over the first arm (`Ran.speedups`)."""

    @property
    def noise(self) -> LossNoise:
        """The noise of a run's loss, for the searches of learning rates."""
        arms = self.values.get("val_loss", {}).values()
        finite = ({int(seed): v for seed, v in own.items() if v is not None} for own in arms)
        return find_noise(finite, self.searches)

    @property
    def holds(self) -> bool:
        """Whether every expectation was met."""
        return all(each.holds for each in self.findings)

    @property
    def decided(self) -> bool:
        """Whether no comparison is inconclusive. No further seeds are then needed."""
        return all(each.found != "inconclusive" for each in self.findings)

    @classmethod
    def read(cls, file: Path) -> ExperimentOutcome:
        """Read a file written by `write`. Raises ConfigError for any other file."""
        return TypeAdapter(cls).validate_python(read_json(file, cls))

    def write(self, file: Path) -> None:
        """Write the outcome as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def find_file(name: str) -> Path:
    """Return the path of the verdict of a packaged recipe."""
    return recipes_dir() / "verdicts" / f"{name}.json"


def find_outcome(name: str) -> ExperimentOutcome | None:
    """Read the verdict of a packaged recipe; None if there is none."""
    return ExperimentOutcome.read(file) if (file := find_file(name)).is_file() else None


def judge(
    name: str,
    recipe: Experiment,
    ran: Ran,
    short_form: bool,
    level: float = LEVEL,
    registration: dict[str, Any] | None = None,
) -> ExperimentOutcome:
    """Test the arms' results against the expectations of the whole or short form, at a significance level. Without
    expectations every arm is compared with the baseline."""
    return ExperimentOutcome(
        recipe=name,
        key=recipe.key(),
        form="short" if short_form else "whole",
        date=date.today().isoformat(),
        machine=ran.machine,
        seconds=round(ran.seconds, 1),
        values={
            metric: {
                arm: {str(seed): value if math.isfinite(value) else None for seed, value in own.items()}
                for arm, own in by_arm.items()
            }
            for metric, by_arm in ran.values.items()
        },
        costs={arm: dict(costs) for arm, costs in ran.costs.items()},
        findings=weigh(ran, recipe, recipe.list_expectations(short_form), level),
        level=level,
        registration=registration,
        searches={arm: dict(each) for arm, each in ran.searches.items()},
        speedups=dict(ran.speedups),
    )


def weigh(ran: Ran, experiment: Experiment, expected: Sequence[Expectation], level: float = LEVEL) -> list[Finding]:
    """Test results against expectations. `level` is the error rate over all verdicts together (Holm's correction)."""
    compared = _compare_expected(ran, experiment, expected, level)
    found = []
    for at, each in enumerate(expected):
        own = ran.values.get(each.metric or experiment.metric, {})
        if (comparison := compared.get(at)) is not None:
            found.append(_mark_bound(_weigh_verdict(each, comparison, experiment), ran))
        elif each.cost is not None and each.against is not None:
            ratio = ran.costs[each.arm][each.cost] / ran.costs[each.against][each.cost]
            found.append(_weigh_bound(each, {0: ratio}))
        elif each.against is not None:
            found.append(_weigh_bound(each, _subtract(own[each.arm], own[each.against])))
        else:
            found.append(_weigh_bound(each, own[each.arm]))
    return found


def compare_with_baseline(
    ran: Ran, experiment: Experiment, short_form: bool, level: float = LEVEL
) -> dict[str, Comparison]:
    """Compare each arm with the baseline in the experiment's metric. An arm with an expected verdict keeps the
    comparison of that expectation. The other arms are tested together with all expectations."""
    expected, first = experiment.list_expectations(short_form), experiment.first_arm()
    own = {
        each.arm: at
        for at, each in enumerate(expected)
        if each.verdict and each.against == first and each.metric in (None, experiment.metric)
    }
    rest = [arm for arm in experiment.arms if arm not in (first, *own)]
    unnamed = [Expectation(arm=arm, against=first, verdict="any") for arm in rest]
    compared = _compare_expected(ran, experiment, expected, level)
    beside = _compare_expected(ran, experiment, [*expected, *unnamed], level) if rest else {}
    found = {arm: compared[at] for arm, at in own.items()}
    found |= {arm: beside[len(expected) + at] for at, arm in enumerate(rest)}
    pooled = pool_variance(ran.values[experiment.metric], first)
    return {arm: replace(each, pooled=pooled.get(arm)) for arm, each in found.items()}


def _compare_expected(
    ran: Ran, experiment: Experiment, expected: Sequence[Expectation], level: float
) -> dict[int, Comparison]:
    """Test the expected verdicts, with p-values corrected over all of them. Keys are indices in `expected`. A
    difference keeps the metric's sign, even if a higher metric is better."""
    pairs = {
        str(at): _pair_arms(ran, experiment, each, each.against)
        for at, each in enumerate(expected)
        if each.verdict is not None and each.against is not None
    }
    found = {int(at): each for at, each in compare_pairs(pairs, level).items()}
    return {at: each.negate() if experiment.prefers_higher(expected[at].metric) else each for at, each in found.items()}


def _pair_arms(ran: Ran, experiment: Experiment, each: Expectation, against: str) -> ArmPair:
    """Make the pair of arms of an expected verdict, with lower values better."""
    margin = experiment.find_margin(each)
    if each.metric == WINDOW:
        windows = find_windows(ran.searches, ran.noise)
        window, theirs = windows[each.arm], windows[against]
        apart = window.subtract_from(theirs, ran.noise.freedom)
        return ArmPair({}, {}, None if window.open or theirs.open else margin, apart.shared, apart)
    own = ran.values[each.metric or experiment.metric]
    losses = negate(own) if experiment.prefers_higher(each.metric) else own
    errors = find_rate_errors(ran.searches, ran.noise) if experiment.metric == "val_loss" else {}
    shared = math.hypot(*(errors.get(arm, 0.0) for arm in (each.arm, against)))
    noises = ran.least.get(each.metric or experiment.metric, {})
    least, theirs = (noises.get(arm, UNKNOWN) for arm in (each.arm, against))
    return ArmPair(losses[each.arm], losses[against], margin, shared, least=least.join(theirs))


def _subtract(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    return {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}


def _weigh_verdict(each: Expectation, made: Comparison, experiment: Experiment) -> Finding:
    holds = each.verdict in ("any", made.verdict)
    found = (made.verdict, made.difference, made.interval, made.adjusted, holds)
    shared = ("equivalence", "detectable", "diverged", "noise", "freedom", "counted", "rate_error")
    more: dict[str, Any] = {name: getattr(made, name) for name in shared}
    more |= {"metric": each.metric, "margin": experiment.find_margin(each)}
    return Finding(each.arm, each.against, str(each.verdict), each.paper, *found, **more)


def _mark_bound(found: Finding, ran: Ran) -> Finding:
    """Mark the difference of two windows of learning rates as a bound if one window is open. Remove it if both are."""
    if found.metric != WINDOW or found.against is None:
        return found
    windows = find_windows(ran.searches, ran.noise)
    bound = windows[found.arm].bounds_from(windows[found.against])
    return replace(found, bound=bound, value=None if bound == "unknown" else found.value)


def _weigh_bound(each: Expectation, own: Mapping[int, float]) -> Finding:
    """Test an expected bound. It holds if every seed meets it, whatever the mean."""
    low, high = min(own.values()), max(own.values())
    kept = (each.at_least is None or low >= each.at_least) and (each.at_most is None or high <= each.at_most)
    about = (each.arm, each.against, describe_bounds(each), each.paper)
    middle = mean(own.values()) if math.isfinite(low + high) else math.inf
    return Finding(*about, "kept" if kept else "not kept", middle, (low, high), None, kept, each.cost, each.metric)


def describe_pair(each: Finding | Expectation) -> str:
    """Describe the arms of an expectation: `a − b`, `a ÷ b` for costs, or `a` alone."""
    sign = "÷" if each.cost else "−"
    pair = each.arm if each.against is None else f"{each.arm} {sign} {each.against}"
    return pair if each.metric is None else f"{each.metric}, {pair}"


def describe_bounds(each: Expectation) -> str:
    """Format the bounds of an expectation in words, with the name of the cost if they limit a cost."""
    bounds = (("at least", each.at_least), ("at most", each.at_most))
    said = ", ".join(f"{word} {value:g}" for word, value in bounds if value is not None)
    return said if each.cost is None else f"{each.cost} × {said}"
