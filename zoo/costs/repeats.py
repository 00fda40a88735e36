"""Find what repeats in a pattern of layers, so that a price takes as long for many layers as for few."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)

LONGEST = 512
"""Items of the longest repeat that is looked for."""
TRIES = 8
"""Runs of equal items that may stand before a repeat: dense layers before a mixture of experts, say."""


def find_repeats(items: Sequence[Item]) -> list[tuple[tuple[Item, ...], int]]:
    """Cut a sequence into blocks, each so many times after one another. Together they are the sequence.

    Example: a, b, b, c, b, b, c, b, b, c, b are a once, (b, b, c) three times and b once.
    """
    found, rest = [], tuple(items)
    for _ in range(TRIES):
        if not rest:
            return found
        if period := _find_period(rest):
            times = len(rest) // period
            return [*found, (rest[:period], times), *_find_runs(rest[times * period :])]
        count = next((at for at, each in enumerate(rest) if each != rest[0]), len(rest))
        found.append((rest[:1], count))
        rest = rest[count:]
    return [*found, *_find_runs(rest)]


def _find_period(items: tuple[Item, ...]) -> int | None:
    """Find the length of the shortest block that the whole sequence repeats, to a part of it at the end; None where
    there is none of LONGEST items at most that comes twice."""
    for period in range(1, min(LONGEST, len(items) // 2) + 1):
        begins = items[period] == items[0] and items[:period] == items[period : 2 * period]
        if begins and items[period:] == items[:-period]:
            return period
    return None


def _find_runs(items: tuple[Item, ...]) -> list[tuple[tuple[Item, ...], int]]:
    return [((item,), sum(1 for _ in run)) for item, run in groupby(items)]
