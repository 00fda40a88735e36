"""Find repeats in a pattern of layers, so that the time of pricing does not grow with depth."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

from zoo.costs.activations import Section

Item = TypeVar("Item", bound=Hashable)

LONGEST = 512
"""Number of items of the longest block that is searched for (`find_repeats`)."""
TRIES = 8
"""Number of runs of equal items that may precede the repeated block, such as dense layers before layers with
experts."""


def find_repeats(items: Sequence[Item]) -> list[tuple[tuple[Item, ...], int]]:
    """Cut a sequence into pairs (block, times): in each pair's turn, the sequence has the block `times` times.

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
    """Find the length of the shortest block whose repetition gives the whole sequence, the last time perhaps cut short.
    The block must come twice at least and have LONGEST items at most; None if there is no such block."""
    for period in range(1, min(LONGEST, len(items) // 2) + 1):
        begins = items[period] == items[0] and items[:period] == items[period : 2 * period]
        if begins and items[period:] == items[:-period]:
            return period
    return None


def _find_runs(items: tuple[Item, ...]) -> list[tuple[tuple[Item, ...], int]]:
    return [((item,), sum(1 for _ in run)) for item, run in groupby(items)]


class PassPiece(NamedTuple):
    """A piece of a pass. `kept` is the bytes that it keeps for its backward pass, `gradients` the bytes of the weights'
    gradients that its backward pass leaves. `again` marks a recomputed piece. For a tied token table, `table` is the
    bytes of the head's gradient, which waits for the embedding's, and `sum` the bytes of the tensor with their sum.
    `kind` is the tower and the kind of a layer, None outside the layers."""

    label: str
    section: Section
    kept: int
    gradients: int
    sum: int = 0
    again: bool = False
    table: int = 0
    kind: tuple[str, str] | None = None


class PassRun(NamedTuple):
    """Pieces in the order of the forward pass, repeated `times` times."""

    pieces: tuple[PassPiece, ...]
    times: int = 1


NOTHING = Section((), 0)


def list_decisive(run: PassRun) -> list[PassPiece]:
    """List the pieces of a run at which memory can peak, in the order of the backward pass: a fixed number of repeats,
    whatever the depth.

    From one repeat to the next, the bytes kept before a piece fall by a constant and gradients grow by a constant. So
    the bytes at a piece are the larger of two straight lines, and the peak is at an end of the run. The repeat that the
    backward pass reaches first is kept separate, because the gradients of shared tensors (`beside`) exist only after
    it. Example: 100 repeats become 1, 1, 97 and 1. The 97 are a single piece with kept bytes and gradients, but without
    memory of its own, so that the peak is never there.
    """
    once = list(reversed(run.pieces))
    if run.times < 4:
        return once * run.times
    kept, gradients = (sum(each) * (run.times - 3) for each in zip(*((p.kept, p.gradients) for p in once), strict=True))
    return [*once, *once, PassPiece("layer", NOTHING, kept, gradients, kind=once[0].kind), *once]
