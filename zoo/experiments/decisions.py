"""Measure decision accuracy: how often the verdict on two arms at one size holds at four times the size.

Small experiments are run to decide about larger models; decision accuracy says how reliable their verdicts are
(DataDecide, 2025, measures it for data). Two sources have both sizes. A ladder has losses at its largest size and at a
quarter of it. Two recipes with the same arms and metric count if one's models are about four times as large.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.experiments.experiment import Experiment
from zoo.experiments.judging import ExperimentOutcome, Finding

SIZES = ("loss at a quarter", "loss of the largest")
"""A ladder's metrics at a quarter of its largest size, and at its largest size."""

FOURFOLD = (3.0, 5.3)
"""Lowest and highest ratio of parameters that counts as four times."""

Kept = Mapping[str, tuple[Experiment, ExperimentOutcome]]
"""Recipes with their stored verdicts, by name."""


@dataclass(frozen=True)
class Decision:
    """The findings on one pair of arms at two sizes. `source` names the ladder or the two recipes."""

    source: str
    small: Finding
    large: Finding

    @property
    def same_sign(self) -> bool:
        """Whether the arm with the lower value is the same at both sizes."""
        assert self.small.value is not None and self.large.value is not None
        return (self.small.value < 0) == (self.large.value < 0)

    @property
    def same_verdict(self) -> bool:
        """Whether the verdict is the same at both sizes."""
        return self.small.found == self.large.found


def list_decisions(kept: Kept) -> list[Decision]:
    """List the comparisons that were made at two sizes, without withdrawn verdicts."""
    valid = {name: each for name, each in kept.items() if not each[0].withdrawn}
    made = [
        decision
        for name, each in valid.items()
        for decision in _pair(name, *(_select(each, metric) for metric in SIZES))
    ]
    for (first, small), (second, large) in itertools.permutations(valid.items(), 2):
        if _is_fourfold(small, large):
            made += _pair(f"{first}, {second}", *(_select(each, each[0].metric) for each in (small, large)))
    return made


def _is_fourfold(small: tuple[Experiment, ExperimentOutcome], large: tuple[Experiment, ExperimentOutcome]) -> bool:
    """Whether two recipes have the same arms and metric, and the baseline of `large` about four times as many
    parameters."""
    one, other = small[0], large[0]
    if one.arms.keys() != other.arms.keys() or (one.metric, one.higher) != (other.metric, other.higher):
        return False
    first, second = (its.costs[each.first_arm()].get("params", math.nan) for each, its in (small, large))
    return FOURFOLD[0] <= second / first <= FOURFOLD[1]


def _select(kept: tuple[Experiment, ExperimentOutcome], metric: str) -> list[Finding]:
    """Select the findings in a metric that have a p-value."""
    experiment, outcome = kept
    tested = (each for each in outcome.findings if each.p is not None and each.value is not None)
    return [each for each in tested if (each.metric or experiment.metric) == metric]


def _pair(source: str, small: Sequence[Finding], large: Sequence[Finding]) -> list[Decision]:
    others = {(each.arm, each.against): each for each in large}
    pairs = ((each, others.get((each.arm, each.against))) for each in small)
    return [Decision(source, each, other) for each, other in pairs if other is not None]
