"""Estimate how much a difference between two arms would vary over other validation text.

Seeds repeat the training, not the rows that a loss is measured on: a difference that every seed shows may exist on
these rows alone. Runs that read the same rows have their losses by piece of the validation split, and the pieces are
resampled (a paired bootstrap; Efron, 1979).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import stdev

RESAMPLES = 1000
FEWEST = 12
"""Fewest pieces whose resampling gives an interval of about its nominal coverage."""

Piece = tuple[float, int]
"""The nats of a piece of the validation split, and its number of targets."""


def bootstrap_rows(pairs: Sequence[tuple[Sequence[Piece], Sequence[Piece]]]) -> float | None:
    """Give the standard error over rows of the mean difference between two arms, in nats a target, from the pieces of
    each pair of runs. None for fewer than FEWEST pieces, and if the runs did not read the same rows."""
    targets = {tuple(count for _, count in pieces) for pair in pairs for pieces in pair}
    if len(targets) != 1 or len(counts := next(iter(targets))) < FEWEST:
        return None
    apart = [sum(own[at][0] - other[at][0] for own, other in pairs) / len(pairs) for at in range(len(counts))]
    drawn, found, places = random.Random(0), [], range(len(counts))
    for _ in range(RESAMPLES):
        chosen = drawn.choices(places, k=len(counts))
        found.append(sum(apart[at] for at in chosen) / sum(counts[at] for at in chosen))
    return stdev(found) * math.sqrt(len(counts) / (len(counts) - 1))  # what is resampled lies around its own mean
