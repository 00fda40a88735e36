"""Effective speedup: how many times the variant's budget the baseline would need to reach the variant's loss.

By the baseline's own law of its loss against its budget, L = L∞ + a·C^−α, the baseline comes from its loss L_b to the
variant's L_v with S = ((L_b − L∞)/(L_v − L∞))^(1/α) times its budget.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

LEVEL = 0.05
"""The share of resamples that an interval leaves out."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Decay:
    """A loss against a budget, L = L∞ + a·C^−α: the loss `limit` that no budget goes below, and the `exponent` α."""

    limit: float
    exponent: float

    def speedup(self, baseline: float, variant: float) -> float:
        """The speedup of a variant's loss over the baseline's. Infinite where the baseline never gets there, NaN where
        its own loss is below the limit."""
        if baseline <= self.limit:
            return math.nan
        if variant <= self.limit:
            return math.inf
        return ((baseline - self.limit) / (variant - self.limit)) ** (1 / self.exponent)


@dataclass(frozen=True)
class Speedup:
    """An effective speedup, and the interval that holds it in 95 % of resamples; None with one seed and one law."""

    factor: float
    interval: tuple[float, float] | None

    def times(self, ratio: float) -> Speedup:
        """The speedup in another currency, of which the baseline spent `ratio` times what the variant did."""
        between = None if self.interval is None else (self.interval[0] * ratio, self.interval[1] * ratio)
        return Speedup(self.factor * ratio, between)


def find_speedup(pairs: Sequence[tuple[float, float]], decays: Sequence[Decay], seed: int = 0) -> Speedup:
    """The speedup between the mean losses of (baseline, variant) pairs, one of each seed.

    The first of `decays` is the baseline's law, the others are the laws of its resampled points. The interval is a
    bootstrap over the seeds and the laws together.
    """
    factor = decays[0].speedup(mean(base for base, _ in pairs), mean(variant for _, variant in pairs))
    if len(pairs) < 2 and len(decays) < 2:
        return Speedup(factor, None)
    drawn, found = random.Random(seed), []
    for _ in range(RESAMPLES):
        chosen = drawn.choices(pairs, k=len(pairs))
        decay = drawn.choice(decays[1:] or decays)
        found.append(decay.speedup(mean(base for base, _ in chosen), mean(variant for _, variant in chosen)))
    found = sorted(each for each in found if not math.isnan(each))
    if not found:
        return Speedup(factor, None)
    outside = LEVEL / 2 * (len(found) - 1)
    return Speedup(factor, (found[math.floor(outside)], found[math.ceil(len(found) - 1 - outside)]))
