"""Sums that a price and its explanation share, so that none is stated twice.

A price comes of plain functions of numbers. An explanation calls the same functions with numbers that remember their
formula (`zoo.analysis.explain.terms`). Two things that needs are here: functions of which such numbers have a form of
their own, and a Note, which hears of each figure on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

Amount = Any
"""A number, or in an explanation the term that has it."""

Note = Callable[[str, Amount], Amount]
"""Takes the name and value of a figure, and gives the value to go on with."""


def keep_value(name: str, value: Amount) -> Amount:
    """Give a figure back as it is: the Note of a price."""
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
    """Compute the chance that one of `count` things is among the k chosen in any of `tries` tries: 1 − (1 − k/E)^T."""
    return -math.expm1(tries * math.log1p(-k / count))
