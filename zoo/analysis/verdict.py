"""Whether one architecture is better than another: paired runs, Student's t, Holm's correction, and what would tell.

Runs of two arms with the same seed see the same data in the same order, so that their difference has less noise than
either loss. With n pairs of mean difference d and deviation s, d·√n/s is Student's t of n − 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev
from typing import Literal

LEVEL = 0.05
"""The chance of a verdict where there is no difference, of all arms together."""

POWER = 0.8
"""The chance of a verdict for which the seeds that would tell are counted."""

MOST = 100_000
"""Seeds beyond which a difference is as good as none."""

Verdict = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Comparison:
    """An arm's losses less the baseline's, seed by seed. `p` is two-sided, `adjusted` after Holm over all arms; None
    with one pair. `needed` is how many seeds would tell, None where none would."""

    n: int
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    adjusted: float | None
    verdict: Verdict
    needed: int | None


def compare_arms(
    losses: Mapping[str, Mapping[int, float]], baseline: str, level: float = LEVEL
) -> dict[str, Comparison]:
    """Compare each arm with the baseline, over the seeds that both have; `losses` are by arm and seed, lower is better.

    Arms that share no seed with the baseline are left out.
    """
    pairs = {}
    for arm, by_seed in losses.items():
        shared = sorted(by_seed.keys() & losses[baseline].keys())
        if arm != baseline and shared:
            pairs[arm] = [by_seed[seed] - losses[baseline][seed] for seed in shared]
    chances = {arm: find_chance(each) for arm, each in pairs.items()}
    adjusted = adjust_by_holm({arm: p for arm, p in chances.items() if p is not None})
    return {arm: _describe(each, chances[arm], adjusted.get(arm), level) for arm, each in pairs.items()}


def _describe(differences: Sequence[float], p: float | None, adjusted: float | None, level: float) -> Comparison:
    middle, n = mean(differences), len(differences)
    told = adjusted is not None and adjusted < level
    verdict: Verdict = "not told apart" if not told else "better" if middle < 0 else "worse"
    needed = None if n < 2 else count_seeds(middle, stdev(differences), level)
    return Comparison(n, middle, find_interval(differences, level), p, adjusted, verdict, needed)


def find_chance(values: Sequence[float]) -> float | None:
    """The two-sided chance of a mean so far from 0, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    spread = stdev(values)
    if spread == 0:
        return 1.0 if mean(values) == 0 else 0.0
    return 2 * (1 - student_cdf(abs(mean(values)) * math.sqrt(len(values)) / spread, len(values) - 1))


def find_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of the mean that holds it in all but `level` of cases; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = student_quantile(1 - level / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def adjust_by_holm(chances: Mapping[str, float]) -> dict[str, float]:
    """Correct chances for how many there are (Holm, 1979): the k-th smallest of m is multiplied by m − k + 1, and none
    may be below an earlier one."""
    found, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(chances.items(), key=lambda each: each[1])):
        highest = max(highest, min(1.0, p * (len(chances) - rank)))
        found[name] = highest
    return found


def count_seeds(difference: float, spread: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """How many pairs tell a difference of this mean and deviation with this power; None for more than 100,000."""
    if difference == 0:
        return None
    wanted = NormalDist().inv_cdf(power)
    effect = abs(difference) / spread if spread else math.inf
    least = ((NormalDist().inv_cdf(1 - level / 2) + wanted) / effect) ** 2  # as if the deviation were known
    for n in range(max(2, math.floor(least)), MOST):
        if effect * math.sqrt(n) - student_quantile(1 - level / 2, n - 1) >= wanted:
            return n
    return None


# ---------------------------------------------------------------- Student's t


def student_cdf(t: float, freedom: int) -> float:
    """The chance of a value up to t, by the incomplete beta function."""
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def student_quantile(share: float, freedom: int) -> float:
    """The value up to which a share of cases lies, by bisection."""
    low, high = -1e9, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny, c, d, value = 1e-300, 1.0, 0.0, 1.0
    for step in range(400):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        d = 1 / (1 + term * d or tiny)
        c = 1 + term / (c or tiny) or tiny
        value *= c * d
        if step and abs(c * d - 1) < 1e-15:
            break
    return front * (value - 1)
