"""Compute an effective speedup: how many times the variant's budget the baseline needs to reach the variant's loss.

By the baseline's scaling law L = L∞ + a·C^−α, the baseline gets from its loss L_b to the variant's L_v with S = ((L_b −
L∞)/(L_v − L∞))^(1/α) times its budget. The law must come from a ladder (`zoo report --fit`), not from the baseline's
own loss curve: in the middle of a run the learning rate has not decayed, and the loss is too high.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

LEVEL = 0.05
"""The share of resamples outside of an interval."""

RESAMPLES = 2000


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
    """An effective speedup, and its 95 % bootstrap interval. The interval is None with one seed and one law, or if no
    resample gives a speedup.
    """

    factor: float
    interval: tuple[float, float] | None

    def times(self, ratio: float) -> Speedup:
        """Express the speedup in a cost (tokens, FLOPs, seconds) of which the baseline spent `ratio` times as much as
        the variant."""
        between = None if self.interval is None else (self.interval[0] * ratio, self.interval[1] * ratio)
        return Speedup(self.factor * ratio, between)


def find_speedup(pairs: Sequence[tuple[float, float]], decays: Sequence[PowerLaw], seed: int = 0) -> Speedup:
    """Find the speedup between the mean losses of (baseline, variant) pairs, one pair a seed.

    The first of `decays` is the baseline's law, the others are fitted to resampled points. The interval is a bootstrap
    over seeds and laws together.
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
