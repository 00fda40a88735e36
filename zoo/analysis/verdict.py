"""Test whether one architecture is better than another: paired runs, Student's t, Holm's correction, seeds needed.

Runs of two arms with the same seed see the same data in the same order, so that their difference has less noise than
either loss. With n pairs of mean difference d and standard deviation s, d·√n/s follows Student's t with n − 1 degrees
of freedom. Arms without a common seed are compared by Welch's t (1947), which has more noise. Student's t is computed
here: scipy would be the largest dependency of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev
from typing import Literal

LEVEL = 0.05
"""Significance level: the chance that any arm is called better or worse if there is no difference."""

POWER = 0.8
"""The power for which the number of seeds needed is computed."""

MOST = 100_000
"""Largest number of seeds; a difference that needs more is as good as none."""

Verdict = Literal["better", "worse", "no significant difference"]


@dataclass(frozen=True)
class Comparison:
    """The mean difference between an arm's losses and the baseline's. If both have seeds in common, runs are `paired`
    by seed and `n` counts the pairs; otherwise two samples are compared, and `n` is the size of the smaller one. `p` is
    two-sided, `adjusted` is p after Holm's correction over all arms. `needed` is the number of seeds at which the
    difference would be significant with power POWER (None: MOST or more, or no difference). If `n` is 1, then `p`,
    `adjusted`, `interval` and `needed` are None."""

    n: int
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    adjusted: float | None
    verdict: Verdict
    needed: int | None
    paired: bool = True


@dataclass(frozen=True)
class MeanDifference:
    """A mean difference, its standard `error`, and the degrees of `freedom` of Student's t. If `n` is 1, only the
    difference is known, and `error` and `spread` are NaN."""

    n: int
    difference: float
    error: float
    freedom: float
    spread: float
    """The standard deviation of a pair's difference, or of a run if there are no pairs."""
    paired: bool

    @classmethod
    def of_pairs(cls, differences: Sequence[float]) -> MeanDifference:
        n = len(differences)
        spread = stdev(differences) if n > 1 else math.nan
        return cls(n, mean(differences), spread / math.sqrt(n), n - 1, spread, paired=True)

    @classmethod
    def of_arms(cls, losses: Sequence[float], baseline: Sequence[float]) -> MeanDifference:
        """Compare two arms without pairs (Welch, 1947)."""
        n, difference = min(len(losses), len(baseline)), mean(losses) - mean(baseline)
        if n < 2:
            return cls(n, difference, math.nan, 0, math.nan, paired=False)
        shares = [stdev(each) ** 2 / len(each) for each in (losses, baseline)]
        total = sum(shares)
        below = sum(share**2 / (len(each) - 1) for share, each in zip(shares, (losses, baseline), strict=True))
        spread = math.sqrt((stdev(losses) ** 2 + stdev(baseline) ** 2) / 2)
        return cls(n, difference, math.sqrt(total), total**2 / below if below else n - 1, spread, paired=False)

    def p_value(self) -> float:
        """Give the two-sided p-value of the difference."""
        if self.error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return 2 * (1 - student_cdf(abs(self.difference) / self.error, self.freedom))

    def interval(self, level: float) -> tuple[float, float]:
        """Give the 1 − `level` confidence interval of the difference."""
        half = student_quantile(1 - level / 2, self.freedom) * self.error
        return self.difference - half, self.difference + half

    def count_needed(self, level: float) -> int | None:
        """Count the seeds at which the difference would be significant with power POWER; None for MOST and more, and
        for no difference."""
        return (count_seeds if self.paired else count_seeds_per_arm)(self.difference, self.spread, level)


def compare_arms(
    losses: Mapping[str, Mapping[int, float]], baseline: str, level: float = LEVEL
) -> dict[str, Comparison]:
    """Compare each arm with the baseline arm: over the seeds that both have, or over all seeds if they share none.
    `losses` are by arm and seed, lower is better."""
    samples = {arm: _sample(each, losses[baseline]) for arm, each in losses.items() if arm != baseline}
    p_values = {arm: each.p_value() for arm, each in samples.items() if each.n > 1}
    adjusted = adjust_by_holm(p_values)
    return {arm: _describe(each, p_values.get(arm), adjusted.get(arm), level) for arm, each in samples.items()}


def _sample(losses: Mapping[int, float], baseline: Mapping[int, float]) -> MeanDifference:
    shared = sorted(losses.keys() & baseline.keys())
    if shared:
        return MeanDifference.of_pairs([losses[seed] - baseline[seed] for seed in shared])
    return MeanDifference.of_arms(list(losses.values()), list(baseline.values()))


def _describe(sample: MeanDifference, p: float | None, adjusted: float | None, level: float) -> Comparison:
    told = adjusted is not None and adjusted < level
    verdict: Verdict = "no significant difference" if not told else "better" if sample.difference < 0 else "worse"
    needed, between = (None, None) if p is None else (sample.count_needed(level), sample.interval(level))
    return Comparison(sample.n, sample.difference, between, p, adjusted, verdict, needed, sample.paired)


def adjust_by_holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for multiple comparisons (Holm, 1979): the k-th smallest of m is multiplied by m − k + 1, and is
    at least the corrected one before it."""
    found, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda each: each[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        found[name] = highest
    return found


def count_seeds(difference: float, spread: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """Count the pairs at which a difference of this mean and standard deviation (`spread`) is significant with this
    power; None for 100,000 and more, and for a difference of 0."""
    if difference == 0:
        return None
    wanted = NormalDist().inv_cdf(power)
    effect = abs(difference) / spread if spread else math.inf
    least = ((NormalDist().inv_cdf(1 - level / 2) + wanted) / effect) ** 2  # as if the deviation were known
    for n in range(max(2, math.floor(least)), MOST):
        if effect * math.sqrt(n) - student_quantile(1 - level / 2, n - 1) >= wanted:
            return n
    return None


def count_seeds_per_arm(difference: float, spread: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """Count the runs of each of two arms at which their difference is significant without pairs, as if the deviation of
    a run were known; None for 100,000 and more, and for a difference of 0."""
    wanted = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
    if difference == 0:
        return None
    n = max(2, math.ceil(2 * (wanted * spread / difference) ** 2))
    return n if n < MOST else None


def find_front(losses: Mapping[str, Mapping[int, float]], costs: Mapping[str, float], alike: float) -> list[str]:
    """Find the arms on the Pareto front of loss and cost: those that no arm of equal or lower cost beats significantly
    (Holm, over these arms). Costs within a share `alike` count as equal."""
    found = []
    for arm in costs:
        rivals = [each for each in costs if each == arm or costs[each] <= costs[arm] * (1 + alike)]
        against = compare_arms({each: losses[each] for each in rivals}, arm)
        if all(each.verdict != "better" for each in against.values()):
            found.append(arm)
    return found


# ---------------------------------------------------------------- Student's t


def student_cdf(t: float, freedom: float) -> float:
    """Compute Student's cumulative distribution at t, by the incomplete beta function."""
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def student_quantile(share: float, freedom: float) -> float:
    """Compute Student's quantile of a share, by bisection."""
    low, high = -1e9, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Compute the regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
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
