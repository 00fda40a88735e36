"""Judge a recipe: test the results of its arms against its expectations, and keep the verdicts as data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import mean

from pydantic import TypeAdapter

from zoo.analysis.verdict import LEVEL, MeanDifference, adjust_by_holm
from zoo.disk import write_text
from zoo.experiments.recipe import Expectation, Recipe
from zoo.paths import recipes_dir
from zoo.untrusted.json_file import read_json

Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metrics by name, arm and seed."""


@dataclass(frozen=True)
class Ran:
    """The results of a recipe's arms: metrics, the costs of a run of each arm, and the seconds of all training
    together."""

    values: Values
    costs: Mapping[str, Mapping[str, float]]
    seconds: float
    machine: str


@dataclass(frozen=True)
class Finding:
    """The outcome of an expectation. For a verdict, `found` is the verdict, `value` the difference of the arms' means,
    `interval` its 95 % interval, and `p` the p-value after Holm's correction over the recipe's comparisons. For bounds,
    `found` is "kept" or "not kept", `value` the mean, `interval` the range over seeds, and `p` None."""

    arm: str
    against: str | None
    expected: str
    paper: str
    found: str
    value: float
    interval: tuple[float, float] | None
    p: float | None
    holds: bool
    cost: str | None = None
    """The cost that was compared in place of the metric; `value` is then the ratio of the arms' costs."""
    metric: str | None = None


@dataclass(frozen=True)
class RecipeOutcome:
    """The verdicts on a recipe, with where and when it ran."""

    recipe: str
    key: str
    form: str
    date: str
    machine: str
    seconds: float
    values: dict[str, dict[str, dict[str, float]]]
    """The values by metric, arm and seed."""
    costs: dict[str, dict[str, float]]
    findings: list[Finding]

    @property
    def holds(self) -> bool:
        """Whether every expectation was met."""
        return all(each.holds for each in self.findings)

    @classmethod
    def read(cls, file: Path) -> RecipeOutcome:
        """Read a file that `write` wrote. Raises ConfigError for any other file."""
        return TypeAdapter(cls).validate_python(read_json(file, cls))

    def write(self, file: Path) -> None:
        """Write the outcome as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def find_file(name: str) -> Path:
    """Give the file of the verdict of a packaged recipe."""
    return recipes_dir() / "verdicts" / f"{name}.json"


def find_outcome(name: str) -> RecipeOutcome | None:
    """Read the verdict of a packaged recipe; None if there is none."""
    return RecipeOutcome.read(file) if (file := find_file(name)).is_file() else None


def judge(name: str, recipe: Recipe, ran: Ran, short_form: bool) -> RecipeOutcome:
    """Test the arms' results against the expectations of a recipe, or of its short form."""
    return RecipeOutcome(
        recipe=name,
        key=recipe.key(),
        form="short" if short_form else "whole",
        date=date.today().isoformat(),
        machine=ran.machine,
        seconds=round(ran.seconds, 1),
        values={
            metric: {arm: {str(seed): value for seed, value in own.items()} for arm, own in by_arm.items()}
            for metric, by_arm in ran.values.items()
        },
        costs={arm: dict(costs) for arm, costs in ran.costs.items()},
        findings=weigh(ran.values, ran.costs, recipe, recipe.form(short_form).expect),
    )


def weigh(
    values: Values, costs: Mapping[str, Mapping[str, float]], recipe: Recipe, expected: Sequence[Expectation]
) -> list[Finding]:
    """Test values and costs, by arm, against expectations. Verdicts are tested at a level of 5 % over all of them
    together (Holm's correction)."""
    measured = [values.get(each.metric or recipe.metric, {}) for each in expected]
    samples = {
        str(at): MeanDifference.of_pairs(list(_subtract(own[each.arm], own[each.against]).values()))
        for at, (each, own) in enumerate(zip(expected, measured, strict=True))
        if each.verdict is not None and each.against is not None
    }
    adjusted = adjust_by_holm({at: p for at, each in samples.items() if (p := each.p_value()) is not None})
    found = []
    for at, (each, own) in enumerate(zip(expected, measured, strict=True)):
        if str(at) in samples:
            found.append(_weigh_verdict(each, samples[str(at)], adjusted.get(str(at)), recipe.higher))
        elif each.cost is not None and each.against is not None:
            ratio = costs[each.arm][each.cost] / costs[each.against][each.cost]
            found.append(_weigh_bound(each, {0: ratio}))
        elif each.against is not None:
            found.append(_weigh_bound(each, _subtract(own[each.arm], own[each.against])))
        else:
            found.append(_weigh_bound(each, own[each.arm]))
    return found


def _subtract(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    return {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}


def _weigh_verdict(each: Expectation, sample: MeanDifference, p: float | None, higher: bool) -> Finding:
    found = "no significant difference"
    if p is not None and p < LEVEL:
        found = "better" if (sample.difference > 0) == higher else "worse"
    about = (each.arm, each.against, str(each.verdict), each.paper)
    return Finding(
        *about, found, sample.difference, sample.interval(LEVEL), p, found == each.verdict, metric=each.metric
    )


def _weigh_bound(each: Expectation, own: Mapping[int, float]) -> Finding:
    """Test a bound. It holds if every seed keeps it, whatever the mean."""
    low, high = min(own.values()), max(own.values())
    kept = (each.at_least is None or low >= each.at_least) and (each.at_most is None or high <= each.at_most)
    about = (each.arm, each.against, describe_bounds(each), each.paper)
    return Finding(
        *about, "kept" if kept else "not kept", mean(own.values()), (low, high), None, kept, each.cost, each.metric
    )


def describe_bounds(each: Expectation) -> str:
    """Write the bounds of an expectation in words, with the name of the cost if they limit a cost."""
    bounds = (("at least", each.at_least), ("at most", each.at_most))
    said = ", ".join(f"{word} {value:g}" for word, value in bounds if value is not None)
    return said if each.cost is None else f"{each.cost} × {said}"
