"""Count the FLOPs of an optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from zoo.costs.rank_tensors import fullest
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.costs.tuning import TunedModel

ITERATIONS = 5
"""Newton-Schulz iterations of a step of Muon and NorMuon: the default of conf/optim/."""

REFRESHED, LONGEST = 10, 10_000
"""Steps between two refreshes of SOAP's bases, and the longest side that it rotates: the defaults of
conf/optim/soap.yaml."""


def optimizer_flops(spec: Priced, optimizer: str, tuned: TunedModel | None = None) -> int:
    """Count the FLOPs of the matrix products in one optimizer step. Only optimizers that update whole matrices inside
    layers have any; `tuned` says which of the matrices train (None: all)."""
    if optimizer not in STEPS:
        return 0
    pieces, found = fullest(spec, Setup()).pieces, Fraction(0)
    for each in pieces if tuned is None else tuned.trained(pieces):
        if each.learns and each.hidden:
            *stack, height, width = each.shape
            found += math.prod(stack) * each.copies * STEPS[optimizer](height, width)
    return round(found)


def _iterate(height: int, width: int) -> int:
    short, long = sorted((height, width))
    return ITERATIONS * (4 * short**2 * long + 2 * short**3)


def _rotate(height: int, width: int) -> Fraction:
    turned = [side for side in (height, width) if side <= LONGEST]
    return Fraction(sum(8 * side * height * width + Fraction(2 * side**3, REFRESHED) for side in turned))


STEPS: dict[str, Callable[[int, int], int | Fraction]] = {"muon": _iterate, "normuon": _iterate, "soap": _rotate}
"""The FLOPs of one update of a matrix, from its height and width, by optimizer."""
