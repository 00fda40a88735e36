"""Set the significance level of each look at an experiment that adds seeds until it is decided.

Testing at 5 % after 3 seeds and again after 6 calls equal arms different in 9 % of experiments. A group-sequential
design states its looks before it begins and spends the 5 % over them. After a share t of all seeds at most α*(t) = 2 −
2Φ(z ÷ √t) is spent on each side, where z is the normal quantile of 1 − α ÷ 4 (Lan and DeMets, 1983; the form of O'Brien
and Fleming, 1979). Little is spent early, and the last look keeps nearly all of the power. The levels are computed for
normal means by recursive integration (Armitage, McPherson and Rowe, 1969). Each look's p-value of Student's t is
compared with that look's level (Jennison and Turnbull, Group Sequential Methods, 2000, ch. 11.4).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

from zoo.analysis.verdict.power import LEVEL

POINTS = 240
"""Points at which the density of the running sum is kept between two looks (trapezoidal rule)."""

NORMAL = NormalDist()


def spend(share: float) -> float:
    """Give the part of the two-sided LEVEL that may be spent after a share (0 to 1) of all seeds."""
    return 4 - 4 * NORMAL.cdf(NORMAL.inv_cdf(1 - LEVEL / 4) / math.sqrt(share))


@functools.lru_cache(64)
def find_look_levels(looks: tuple[int, ...]) -> tuple[float, ...]:
    """Find the two-sided significance level of each look, given the numbers of seeds at which the looks are taken, in
    increasing order. One look has the whole level."""
    places: Sequence[float] = (0.0,)
    masses: Sequence[float] = (1.0,)  # of the running sum, where no look has told yet
    spent, before, levels = 0.0, 0.0, []
    for look in looks:
        share = look / looks[-1]
        sigma = math.sqrt(share - before)
        bound = _find_bound(places, masses, sigma, spend(share) - spent)
        levels.append(2 * NORMAL.cdf(-bound / math.sqrt(share)))
        places, masses = _advance(places, masses, sigma, bound)
        spent, before = spend(share), share
    return tuple(levels)


def _find_bound(places: Sequence[float], masses: Sequence[float], sigma: float, wanted: float) -> float:
    """Find the bound that the running sum crosses at the next look with the `wanted` probability."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        crossed = sum(
            mass * (NORMAL.cdf((at - middle) / sigma) + NORMAL.cdf((-at - middle) / sigma))
            for at, mass in zip(places, masses, strict=True)
        )
        low, high = (middle, high) if crossed > wanted else (low, middle)
    return (low + high) / 2


def _advance(
    places: Sequence[float], masses: Sequence[float], sigma: float, bound: float
) -> tuple[Sequence[float], Sequence[float]]:
    """Give the running sum's grid and probability masses within the bound, after one more look."""
    width = 2 * bound / POINTS
    grid = [-bound + width * i for i in range(POINTS + 1)]
    scale = width / (sigma * math.sqrt(2 * math.pi))
    found = [
        scale * sum(mass * math.exp(-(((x - at) / sigma) ** 2) / 2) for at, mass in zip(places, masses, strict=True))
        for x in grid
    ]
    found[0], found[-1] = found[0] / 2, found[-1] / 2
    return grid, found
