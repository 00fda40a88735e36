"""Compute the interval of a variance from its estimate over a few runs, by the chi-square distribution."""

from __future__ import annotations

import functools
import math

LEVEL = 0.2
"""The interval of a variance leaves out this share, half of it on either side."""


@functools.lru_cache(256)
def find_variance_bounds(freedom: float) -> tuple[float, float]:
    """Find the interval of a variance (80 %), divided by its estimate with these degrees of freedom."""
    return freedom / _find_quantile(1 - LEVEL / 2, freedom), freedom / _find_quantile(LEVEL / 2, freedom)


def _find_quantile(share: float, freedom: float) -> float:
    """Find the chi-square quantile of a share, by bisection."""
    low, high = 0.0, 10 * freedom + 40
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if compute_cdf(middle, freedom) < share else (low, middle)
    return high


def compute_cdf(x: float, freedom: float) -> float:
    """Compute the chi-square distribution at x, by the series of the incomplete gamma function."""
    a, half = freedom / 2, x / 2
    term = total = 1 / a
    step = 0
    while term > 1e-15 * total:
        step += 1
        term *= half / (a + step)
        total += term
    return total * math.exp(a * math.log(half) - half - math.lgamma(a)) if half else 0.0
