"""Compute Student's cumulative t distribution and its quantiles, without scipy, which would be the largest
dependency."""

from __future__ import annotations

import functools
import math


@functools.lru_cache(4096)
def student_cdf(t: float, freedom: float) -> float:
    """Compute Student's cumulative distribution at t, by the incomplete beta function."""
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


@functools.lru_cache(4096)
def student_quantile(share: float, freedom: float) -> float:
    """Compute Student's quantile of a share, by bisection."""
    if share < 0.5:
        return -student_quantile(1 - share, freedom)
    low, high = 0.0, 2.0
    while student_cdf(high, freedom) < share and high < 1e9:
        low, high = high, 2 * high
    while high - low > 1e-12 * (1 + high):
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
