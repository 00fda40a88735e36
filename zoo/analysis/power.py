"""Compute the power of a comparison before it runs: the smallest difference that is significant with n seeds.

Runs are paired by seed. Let δ be the true mean difference, in standard deviations of a pair's difference. Then t over n
pairs follows Student's noncentral distribution with parameter δ·√n.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from zoo.analysis.verdict import LEVEL, POWER, student_quantile

POINTS = 400
"""Intervals of Simpson's rule: the power is exact to 1e-6 from two pairs on."""

WIDEST = 1000.0
"""Largest effect that is searched, in standard deviations."""


def compute_power(effect: float, n: int, level: float = LEVEL) -> float:
    """Compute the power of a two-sided paired t-test for a difference of `effect` standard deviations with n pairs.

    The power is the probability of |Z + effect·√n| > t·s, where Z is standard normal, s the estimated ÷ the true
    standard deviation, and t the critical value of Student's t at this `level`.
    """
    freedom, shift, normal = n - 1, effect * math.sqrt(n), NormalDist().cdf
    limit = student_quantile(1 - level / 2, freedom)
    constant = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)

    def density(s: float) -> float:
        if s == 0:
            return math.exp(constant) if freedom == 1 else 0.0
        return math.exp(constant + (freedom - 1) * math.log(s) - freedom * s * s / 2)

    def tell(s: float) -> float:
        return density(s) * (normal(shift - limit * s) + normal(-shift - limit * s))

    high = 1 + 9 / math.sqrt(2 * freedom)
    step = high / POINTS
    weights = (1 if i in (0, POINTS) else 4 if i % 2 else 2 for i in range(POINTS + 1))
    return step / 3 * sum(weight * tell(i * step) for i, weight in enumerate(weights))


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
