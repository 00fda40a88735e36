"""Compute the power of a comparison: the smallest difference that n seeds show, and the seeds that show a difference.

Runs are paired by seed. Let δ be the true mean difference, in standard deviations of a pair's difference. Then t over n
pairs follows Student's noncentral distribution with parameter δ·√n.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist

from zoo.analysis.verdict.student import student_quantile

LEVEL = 0.05
"""Significance level: the chance that any arm is called better or worse if there is no difference."""

POWER = 0.8
"""The power for which the number of seeds needed is computed."""

MOST = 100_000
"""Largest number of seeds; a difference that needs more is as good as none."""

NORMAL = 1000
"""Number of pairs above which the deviation counts as known."""

POINTS = 400
"""Intervals of Simpson's rule: the power is exact to 1e-6 from two pairs on."""

WIDEST = 1000.0
"""Largest effect that is searched, in standard deviations."""


def compute_power(effect: float, n: int, level: float = LEVEL) -> float:
    """Compute the power of a two-sided paired t-test for a difference of `effect` standard deviations with n pairs.

    The power is the probability of |Z + effect·√n| > t·s, where Z is standard normal, s the estimated ÷ the true
    standard deviation, and t the critical value of Student's t at this `level`.
    """
    shift, normal = effect * math.sqrt(n), NormalDist().cdf
    limit = student_quantile(1 - level / 2, n - 1)
    return _average_over_spread(n - 1, lambda s: normal(shift - limit * s) + normal(-shift - limit * s))


def compute_equivalence_power(margin: float, n: int, level: float = LEVEL) -> float:
    """Compute the probability that n pairs show two equal arms to be equivalent within `margin`, which is in standard
    deviations of a pair's difference.

    It is the probability of |Z| + t·s < margin·√n: Z is a standard normal variable, s the estimated ÷ the true standard
    deviation, and t the critical value of the one-sided tests.
    """
    reach, normal = margin * math.sqrt(n), NormalDist().cdf
    limit = student_quantile(1 - level, n - 1)
    return _average_over_spread(n - 1, lambda s: max(0.0, 2 * normal(reach - limit * s) - 1))


def _average_over_spread(freedom: int, value: Callable[[float], float]) -> float:
    """Average a function of s, the estimated ÷ the true standard deviation, by Simpson's rule."""
    constant = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)

    def density(s: float) -> float:
        if s == 0:
            return math.exp(constant) if freedom == 1 else 0.0
        return math.exp(constant + (freedom - 1) * math.log(s) - freedom * s * s / 2)

    high = 1 + 9 / math.sqrt(2 * freedom)
    step = high / POINTS
    weights = (1 if i in (0, POINTS) else 4 if i % 2 else 2 for i in range(POINTS + 1))
    return step / 3 * sum(weight * density(i * step) * value(i * step) for i, weight in enumerate(weights))


@functools.lru_cache(256)
def find_smallest_effect(n: int, level: float = LEVEL, power: float = POWER) -> float | None:
    """Find the smallest true difference that n pairs show to be significant with this power, in standard deviations of
    a pair's difference; None for fewer than two pairs."""
    if n < 2:
        return None
    low, high = 0.0, WIDEST
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if compute_power(middle, n, level) < power else (low, middle)
    return high


def count_seeds(difference: float, spread: float, level: float = LEVEL) -> int | None:
    """Count the pairs at which a difference of this mean and standard deviation (`spread`) is significant with
    power POWER; None for MOST or more, and for a difference of 0."""
    if difference == 0:
        return None
    effect = abs(difference) / spread if spread else WIDEST
    shift = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(POWER)
    least = (shift / effect) ** 2  # as if the deviation were known
    if least > NORMAL:
        return math.ceil(least) if least < MOST else None
    return next((n for n in range(max(2, math.floor(least)), MOST) if compute_power(effect, n, level) >= POWER), None)


def count_seeds_per_arm(difference: float, spread: float, level: float = LEVEL) -> int | None:
    """Count the runs of each of two unpaired arms at which a difference is significant with power POWER, as if the
    deviation of a run (`spread`) were known; None for MOST or more, and for a difference of 0."""
    wanted = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(POWER)
    if difference == 0:
        return None
    n = max(2, math.ceil(2 * (wanted * spread / difference) ** 2))
    return n if n < MOST else None
