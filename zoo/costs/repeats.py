"""Find what repeats in a pattern of layers, so that a price takes as long for many layers as for few."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

from zoo.costs.activations import Section

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


class PassPiece(NamedTuple):
    """A piece of a pass: what it leaves kept, what its backward pass leaves of gradients, and the `sum` of a table's
    that meets one which is there already. With `again` it keeps its input alone. A tied `table` is what the loss leaves
    of its gradient until the embedding's meets it."""

    label: str
    section: Section
    kept: int
    gradients: int
    sum: int = 0
    again: bool = False
    table: int = 0


class PassRun(NamedTuple):
    """Pieces in the order of the forward pass, all of them so many `times` after one another: a repeat of a pattern."""

    pieces: tuple[PassPiece, ...]
    times: int = 1


NOTHING = Section((), 0)


def list_decisive(run: PassRun) -> list[PassPiece]:
    """List the few pieces of a run at which its peak can be, in the order in which they are undone, so that no price
    grows with depth.

    From one repeat to the next, what is kept before a piece falls by a constant and gradients grow by a constant. So
    the bytes at a piece are the larger of two straight lines, and largest at an end of the run. The first repeat undone
    is apart, because the gradient of what layers share (`beside`) stands only after it. Example: 100 repeats become 1,
    1, 97 and 1. The 97 are undone as one step, at which nothing is counted but what stands, so that it never decides.
    """
    once = list(reversed(run.pieces))
    if run.times < 4:
        return once * run.times
    kept, gradients = (sum(each) * (run.times - 3) for each in zip(*((p.kept, p.gradients) for p in once), strict=True))
    return [*once, *once, PassPiece("layer", NOTHING, kept, gradients), *once]
