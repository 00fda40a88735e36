"""Fit parabolas to runs of equal FLOPs, and a power law to their minima (Hoffmann et al., 2022, approach 2).

A law's loss is symmetric in log N only if α = β. If they differ, the parabola's minimum is biased even without noise,
and the bias grows with the range of a budget's sizes. `measure_bias` fits parabolas to a law's own losses at the same
points, and compares the minima with the law's optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.analysis.scaling.law import FLOPS, Law
from zoo.analysis.scaling.points import LossPoints
from zoo.errors import ConfigError

TOLERANCE = 0.1
"""Largest difference between the FLOPs of one budget's points, relative to the fewest FLOPs among them."""

LEAST_SIZES = 3
"""Fewest sizes of a budget: a parabola has three coefficients."""

LEAST_BUDGETS = 2
"""Fewest budgets with a minimum to which a power law is fitted."""


def find_interval(resampled: Sequence[float], share: float) -> tuple[float, float] | None:
    """Find the central interval with this share of resampled values; None without any."""
    if not resampled:
        return None
    low, high = np.quantile(resampled, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class FlopBudget:
    """Points of about equal FLOPs, and the parameters at the minimum of the parabola fitted to them (None: the parabola
    has no minimum within the range of sizes)."""

    flops: float
    points: LossPoints
    params: float | None

    @property
    def tokens(self) -> float | None:
        """Give the tokens on which the budget can train the best size; None without a minimum."""
        return None if self.params is None else self.flops / FLOPS / self.params

    @property
    def spread(self) -> float:
        """Give the factor k by which sizes spread about their geometric mean: from 1/k to k times."""
        return math.sqrt(max(self.points.params) / min(self.points.params))


@dataclass(frozen=True)
class IsoFlop:
    """The budgets, the power law N = scale · C^exponent through their minima, and the exponents of resamples."""

    budgets: tuple[FlopBudget, ...]
    scale: float
    exponent: float
    resampled: tuple[float, ...] = ()

    def interval(self, share: float = 0.95) -> tuple[float, float] | None:
        """Give the central interval with this share of the resampled exponents; None without resamples."""
        return find_interval(self.resampled, share)


@dataclass(frozen=True)
class ParabolaBias:
    """The bias of the parabola method for a law without noise: relative errors of each budget's best parameters and
    tokens (None: the parabola has no minimum), and the error of the exponent."""

    params: tuple[float | None, ...]
    tokens: tuple[float | None, ...]
    exponent: float | None


def fit_isoflop(points: LossPoints, bootstrap: int = 1000, seed: int = 0) -> IsoFlop:
    """Fit a parabola in log N to each budget's losses, and a power law to the minima. Repeat both `bootstrap` times on
    losses with resampled residuals.

    Raises ConfigError if fewer than two budgets have a parabola with a minimum within the range of sizes.
    """
    groups = group_budgets(points)
    if len(groups) < LEAST_BUDGETS:
        raise ConfigError(
            f"points: {len(groups)} budgets of FLOPs have {LEAST_SIZES} sizes within {TOLERANCE:.0%} of one another "
            f"({LEAST_BUDGETS} at least; --approach 3 needs none)"
        )
    budgets = tuple(FlopBudget(flops, each, find_minimum(each.params, each.loss)) for flops, each in groups)
    power = _fit_power(budgets)
    if power is None:
        found = sum(each.params is not None for each in budgets)
        raise ConfigError(
            f"points: {found} of {len(budgets)} budgets have a minimum among their sizes "
            f"({LEAST_BUDGETS} at least: smaller and larger sizes at these FLOPs, or --approach 3)"
        )
    return IsoFlop(budgets, *power, tuple(_resample(budgets, bootstrap, seed)))


def group_budgets(points: LossPoints) -> list[tuple[float, LossPoints]]:
    """Group points of about equal FLOPs: give the geometric mean of each group's FLOPs, and its points. Groups with
    fewer than 3 sizes are dropped."""
    rows = sorted(points.rows(), key=lambda row: row[0] * row[1])
    groups: list[list[tuple[float, float, float]]] = []
    for row in rows:
        if groups and row[0] * row[1] <= groups[-1][0][0] * groups[-1][0][1] * (1 + TOLERANCE):
            groups[-1].append(row)
        else:
            groups.append([row])
    wide = [each for each in groups if len({params for params, _, _ in each}) >= LEAST_SIZES]
    return [
        (math.exp(float(np.mean([math.log(FLOPS * n * d) for n, d, _ in each]))), LossPoints.collect(each))
        for each in wide
    ]


def find_minimum(params: Sequence[float], losses: Sequence[float]) -> float | None:
    """Find the parameters at the minimum of the parabola fitted to losses over log N; None if the parabola opens
    downwards, or has its minimum beyond the sizes."""
    x = np.log(params)
    square, slope, _ = np.polyfit(x - x.mean(), losses, 2)
    if square <= 0:
        return None
    found = float(np.exp(x.mean() - slope / (2 * square)))
    return found if min(params) <= found <= max(params) else None


def measure_bias(law: Law, budgets: Sequence[FlopBudget]) -> ParabolaBias:
    """Measure the bias of approach 2 for a law, without noise, at the sizes of these budgets."""
    fitted = [
        FlopBudget(flops, points, find_minimum(points.params, [law.loss(n, flops / FLOPS / n) for n in points.params]))
        for flops, points in ((each.flops, each.points) for each in budgets)
    ]
    ratios = [None if each.params is None else each.params / law.optimum(each.flops).params for each in fitted]
    power = _fit_power(fitted)
    return ParabolaBias(
        params=tuple(None if each is None else each - 1 for each in ratios),
        tokens=tuple(None if each is None else 1 / each - 1 for each in ratios),
        exponent=None if power is None else power[1] - law.exponent,
    )


def _fit_power(budgets: Sequence[FlopBudget]) -> tuple[float, float] | None:
    """Fit N = scale · C^exponent to the minima; return scale and exponent, or None for fewer than two minima."""
    found = [(each.flops, each.params) for each in budgets if each.params is not None]
    if len(found) < LEAST_BUDGETS:
        return None
    flops, params = np.log(np.array(found)).T
    exponent, offset = np.polyfit(flops, params, 1)
    return float(np.exp(offset)), float(exponent)


def _resample(budgets: Sequence[FlopBudget], count: int, seed: int) -> list[float]:
    """Resample exponents: refit to losses with residuals drawn from all parabolas, scaled up for the three degrees of
    freedom of each parabola. Empty if every parabola goes through its points."""
    smooth = []
    for each in budgets:
        x = np.log(each.points.params)
        smooth.append(np.polyval(np.polyfit(x - x.mean(), each.points.loss, 2), x - x.mean()))
    residuals = np.concatenate([np.array(b.points.loss) - s for b, s in zip(budgets, smooth, strict=True)])
    free = len(residuals) - LEAST_SIZES * len(budgets)
    if free <= 0:
        return []
    residuals, draw = residuals * math.sqrt(len(residuals) / free), np.random.default_rng(seed)
    powers = []
    for _ in range(count):
        losses = [s + draw.choice(residuals, len(s)) for s in smooth]
        again = [
            FlopBudget(b.flops, b.points, find_minimum(b.points.params, z.tolist()))
            for b, z in zip(budgets, losses, strict=True)
        ]
        powers.append(_fit_power(again))
    return [each[1] for each in powers if each is not None]
