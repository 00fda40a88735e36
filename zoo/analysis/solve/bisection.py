"""Find the integer at which a monotonic figure reaches 1. An evaluation may be a whole price, so few are made."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

Figure = Callable[[int], float]
"""A function that never falls as its argument grows."""


def find_crossing(figure: Figure, low: int, high: int) -> int:
    """Find the largest integer from `low` to `high` at which a figure is at most 1; `low` - 1 if there is none.

    The figure is evaluated in turn at three places: where the straight line between the ends crosses 1, next to that
    place, and halfway between the ends. A linear figure, as most are, takes four evaluations; any other at most three
    times as many as bisection.
    """
    figure = functools.cache(figure)
    if figure(low) > 1:
        return low - 1
    if figure(high) <= 1:
        return high
    ways = itertools.cycle(("line", "next", "half"))
    middle = low
    while high - low > 1:
        way = next(ways)
        if way == "line":
            middle = low + int((high - low) * (1 - figure(low)) / (figure(high) - figure(low)))
        elif way == "next":
            middle += 1 if middle == low else -1
        else:
            middle = (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if figure(middle) <= 1 else (low, middle)
    return low


def find_reach(figure: Figure, most: int) -> int:
    """Find the largest integer from 1 to `most` at which a figure is at most 1; 0 if there is none. `most` may be far
    above the answer.

    The straight line through the figures at 1 and 2 gives a first upper bound. While the figure at the bound is at most
    1, the bound is moved up, by steps that at least double. `find_crossing` then searches below the bound."""
    figure = functools.cache(figure)
    if figure(1) > 1 or most == 1:
        return find_crossing(figure, 1, 1)
    slope = figure(2) - figure(1)
    high = min(most, max(2, int(1 + (1 - figure(1)) / slope))) if slope > 0 else 2
    low = 1
    step = 1
    while high < most and figure(high) <= 1:
        low, high, step = high, min(most, high + step), max(2 * step, high)
    return find_crossing(figure, low, high)
