"""Compute an effective speedup: how many times the variant's budget the baseline needs to reach the variant's loss.

By its scaling law L = L∞ + a·C^−α, the baseline gets from its loss L_b to the variant's L_v with S = ((L_b − L∞)/(L_v −
L∞))^(1/α) times its budget. The law must come from a ladder (`zoo report --fit`), not from the baseline's own loss
curve: in the middle of a run the learning rate has not decayed, and the loss is too high.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from zoo.analysis.verdict.difference import MeanDifference
from zoo.analysis.verdict.power import LEVEL


@dataclass(frozen=True)
class PowerLaw:
    """A loss against a budget, L = L∞ + a·C^−α: the irreducible loss L∞ (`limit`), and the `exponent` α."""

    limit: float
    exponent: float

    def speedup(self, baseline: float, variant: float) -> float:
        """Give the speedup of a variant's loss over the baseline's: infinite if the baseline never reaches the
        variant's loss, NaN if the baseline's own loss is not above the limit."""
        if baseline <= self.limit:
            return math.nan
        if variant <= self.limit:
            return math.inf
        return ((baseline - self.limit) / (variant - self.limit)) ** (1 / self.exponent)


@dataclass(frozen=True)
class Speedup:
    """An effective speedup, and its 95 % interval. The interval is None with one seed and one law, or if the speedup is
    not a positive number."""

    factor: float
    interval: tuple[float, float] | None

    def times(self, ratio: float) -> Speedup:
        """Express the speedup in a cost (tokens, FLOPs, seconds); `ratio` is the baseline's cost ÷ the variant's."""
        between = None if self.interval is None else (self.interval[0] * ratio, self.interval[1] * ratio)
        return Speedup(self.factor * ratio, between)


def find_speedup(
    losses: Mapping[int, float],
    baseline: Mapping[int, float],
    decays: Sequence[PowerLaw],
    rate_errors: tuple[float, float] = (0.0, 0.0),
) -> Speedup:
    """Find the speedup between the mean losses of a variant and the baseline, each given by seed.

    The first of `decays` is the baseline's law, the others are fitted to resampled points. The interval is Student's
    for ln S. Its errors are those of the seeds, by the delta method with weights ∂ ln S/∂L; of the laws, the standard
    deviation of ln S over them; and the `rate_errors`, standard errors of the baseline's and the variant's loss that
    all seeds share.
    """
    law = decays[0]
    base, own = mean(baseline.values()), mean(losses.values())
    factor = law.speedup(base, own)
    if not 0 < factor < math.inf or math.inf in rate_errors:
        return Speedup(factor, None)
    weights = (1 / law.exponent / (base - law.limit), 1 / law.exponent / (own - law.limit))
    theirs, mine = (
        {seed: weight * loss for seed, loss in each.items()}
        for each, weight in zip((baseline, losses), weights, strict=True)
    )
    others = [each.speedup(base, own) for each in decays[1:]]
    logs = [math.log(each) for each in others if 0 < each < math.inf]
    of_laws = stdev(logs) if len(logs) > 1 else 0.0
    of_rates = (weight * error for weight, error in zip(weights, rate_errors, strict=True))
    found = MeanDifference.of_runs(theirs, mine, math.hypot(of_laws, *of_rates))
    if not found.known:
        if not of_laws:
            return Speedup(factor, None)
        found = MeanDifference(1, 0.0, 0.0, 1, 0.0, True, of_laws)
    low, high = found.interval(LEVEL)
    half = (high - low) / 2
    beyond = sum(each == math.inf for each in others) > LEVEL / 2 * len(others)
    return Speedup(factor, (factor * math.exp(-half), math.inf if beyond else factor * math.exp(half)))
