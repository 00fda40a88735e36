"""Let prices and their explanations share the same sums, so that no formula is stated twice.

A price is computed by plain functions of numbers. An explanation calls the same functions with terms, numbers that
remember their formula (`zoo.analysis.explain.terms`). For that, min, max and one probability are `singledispatch`
functions with an overload for terms, and a Note is called with each intermediate figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

Amount = Any
"""A number; in an explanation, a term."""

Note = Callable[[str, Amount], Amount]
"""Takes the name and value of a figure, and returns the value to go on with."""


def keep_value(name: str, value: Amount) -> Amount:
    """Return a figure unchanged. Pricing uses this function as its Note."""
    return value


@singledispatch
def take_smaller(a: Amount, b: Amount) -> Amount:
    """Give the smaller of two numbers."""
    return min(a, b)


@singledispatch
def take_larger(a: Amount, b: Amount) -> Amount:
    """Give the larger of two numbers."""
    return max(a, b)


@singledispatch
def compute_chance(k: Amount, count: Amount, tries: Amount) -> Amount:
    """Compute the probability that a given one of `count` things is chosen at least once, if k things are chosen
    uniformly `tries` times: 1 − (1 − k/count)^tries."""
    return -math.expm1(tries * math.log1p(-k / count))
