"""Estimate an arm's best learning rate from a search, and the loss that the rate's error may cost.

Near its optimum x* the loss is a parabola of the log rate x: L(x) = L* + c·(x − x*)². Further away it is not: above a
good rate training becomes unstable, and the loss rises at once. Least squares over the rates in the good window gives
x*, and noise σ of a loss gives the variance v of x*. At the fitted rate the arm loses e = c·(x − x*)², whose expected
square is 3c²v². All seeds run at that rate, so that e is in each of their losses: its root mean square is a standard
error that more seeds do not reduce (`MeanDifference`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zoo.analysis.verdict.difference import MeanDifference

TOLERANCE = 0.05
"""Fraction of the best loss by which a rate's loss may exceed it in the good window. It is several times the noise of a
run; within the noise, chance would decide where a window ends."""


@dataclass(frozen=True)
class RateOptimum:
    """The best rate of an arm, in decades of the learning rate relative to the search's start."""

    at: float
    error: float
    """The standard error of `at`, in decades."""
    curvature: float
    """The parabola's coefficient c, in units of the loss per squared decade."""
    fitted: bool
    """Whether a parabola has its minimum between the rates; else `at` is the best rate tried."""

    @property
    def excess(self) -> float:
        """The root mean square of the loss that the rate's error costs: a standard error of the arm's mean loss. It is
        infinite if only one rate has a loss, because no curvature follows from one."""
        return math.sqrt(3) * self.curvature * self.error**2 if math.isfinite(self.error) else math.inf


def fit_optimum(losses: Mapping[float, float], noise: float) -> RateOptimum:
    """Fit the optimum of an arm's losses by decade; `noise` is the standard deviation of a loss. Losses that are not
    finite are runs that diverged. Raises ValueError if none is finite.

    If the parabola has no minimum between the rates tried, the best rate tried is the optimum, and its error follows
    from the distance to the nearest other rate.
    """
    finite = {at: loss for at, loss in losses.items() if math.isfinite(loss)}
    best = min(finite, key=lambda at: finite[at])
    depth = TOLERANCE * abs(finite[best])
    near = _list_near(finite, best, finite[best] + depth)
    # Beyond twice the window's depth losses count alike: one after a sudden rise says nothing of the parabola.
    heights = [min(finite[at], finite[best] + 2 * depth) for at in near]
    fit = _fit_parabola(near, heights) if len(near) >= 3 else None
    if fit is not None:
        bend, slope, inverse = fit
        at = -slope / (2 * bend) if bend > 0 else math.inf
        if near[0] < best + at < near[-1]:
            # x* = −b ÷ 2c, by the delta method: ∂x*/∂b = −1 ÷ 2c, ∂x*/∂c = b ÷ 2c²
            by_slope, by_bend = -1 / (2 * bend), slope / (2 * bend**2)
            variance = by_slope**2 * inverse[1][1] + 2 * by_slope * by_bend * inverse[1][2] + by_bend**2 * inverse[2][2]
            return RateOptimum(best + at, noise * math.sqrt(max(variance, 0.0)), bend, True)
    return _take_best(finite, best)


def _list_near(finite: Mapping[float, float], best: float, limit: float) -> list[float]:
    """List the rates around the best one whose losses are at most `limit`, and at least the next rate on each side."""
    tried, near = sorted(finite), [best]
    place = tried.index(best)
    for side in (tried[:place][::-1], tried[place + 1 :]):
        outside = next((i for i, at in enumerate(side) if finite[at] > limit), len(side))
        near += side[: max(outside, 1)]
    return sorted(near)


def _take_best(finite: Mapping[float, float], best: float) -> RateOptimum:
    """Take the best rate tried. The true optimum is assumed to lie anywhere up to the nearest other rate, which gives
    the standard error; the curvature is that of a parabola through both losses."""
    others = [at for at in finite if at != best]
    if not others:
        return RateOptimum(best, math.inf, 0.0, False)
    near = min(others, key=lambda at: abs(at - best))
    distance = abs(near - best)
    return RateOptimum(best, distance / math.sqrt(3), (finite[near] - finite[best]) / distance**2, False)


def _fit_parabola(places: Sequence[float], losses: Sequence[float]) -> tuple[float, float, list[list[float]]] | None:
    """Fit L = a + b·u + c·u² by least squares, where u is the place minus the best place. Return c, b, and the inverse
    of the normal equations' matrix in the order (a, b, c): the covariance of a, b and c ÷ the variance of a loss. None
    if the matrix is singular."""
    best = places[min(range(len(places)), key=lambda i: losses[i])]
    rows = [(1.0, at - best, (at - best) ** 2) for at in places]
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(3)] for i in range(3)]
    inverse = _invert(matrix)
    if inverse is None:
        return None
    right = [sum(row[i] * loss for row, loss in zip(rows, losses, strict=True)) for i in range(3)]
    _, slope, bend = (sum(inverse[i][j] * right[j] for j in range(3)) for i in range(3))
    return bend, slope, inverse


def _invert(m: list[list[float]]) -> list[list[float]] | None:
    """Invert a symmetric 3 × 3 matrix by cofactors; None if it is singular."""
    (a, b, c), (_, d, e), (_, _, f) = m
    cofactors = [
        [d * f - e * e, c * e - b * f, b * e - c * d],
        [c * e - b * f, a * f - c * c, b * c - a * e],
        [b * e - c * d, b * c - a * e, a * d - b * b],
    ]
    determinant = a * cofactors[0][0] + b * cofactors[0][1] + c * cofactors[0][2]
    if abs(determinant) < 1e-12:
        return None
    return [[each / determinant for each in row] for row in cofactors]


# ---------------------------------------------------------------- the good window


WindowBound = Literal["at least", "at most", "unknown"]
"""How the difference of two windows' widths bounds the true difference, if a window is open."""


@dataclass(frozen=True)
class RateWindow:
    """The rates around the best in which a loss stays below a limit, in decades."""

    low: float
    high: float
    open_low: bool
    """Whether the loss is still below the limit at the lowest rate tried, so that the width is a lower bound."""
    open_high: bool
    """Whether the loss is still below the limit at the highest rate tried."""
    coarseness: float = 0.0
    """The standard error of the width from the spacing of the rates tried."""
    noise: float = 0.0
    """The standard error of the width from the noise of the losses."""

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def error(self) -> float:
        """The standard error of the width."""
        return math.hypot(self.noise, self.coarseness)

    @property
    def open(self) -> bool:
        """Whether the width is a lower bound."""
        return self.open_low or self.open_high

    def bounds_from(self, other: RateWindow) -> WindowBound | None:
        """Say how this window's width minus the `other` one's bounds the true difference; None if both windows are
        closed."""
        if self.open and other.open:
            return "unknown"
        return "at least" if self.open else "at most" if other.open else None

    def subtract_from(self, other: RateWindow, freedom: float) -> MeanDifference:
        """Estimate how much narrower this window is than the `other` one, in decades. The errors combine those of the
        two windows; `freedom` is the degrees of freedom of the losses' noise.

        The difference is a lower bound if the wider window is open. Its error is unknown (NaN) if the narrower window
        is open or `freedom` is 0."""
        narrower = min(self, other, key=lambda each: each.width)
        noise = math.nan if narrower.open or not freedom else math.hypot(self.noise, other.noise)
        shared = math.hypot(self.coarseness, other.coarseness)
        return MeanDifference(1, other.width - self.width, noise, freedom, noise, False, shared)


def find_good_window(losses: Mapping[float, float], noise: float = 0.0, tolerance: float = TOLERANCE) -> RateWindow:
    """Find the window of rates, in decades, whose losses exceed the best loss by at most a fraction (`tolerance`) of
    it. Between the rates tried the root of the excess is interpolated linearly, which is exact for a parabola.

    `noise` is the standard deviation of a loss. The width's error from it follows by the delta method: each loss in
    turn is moved by ±`noise`. The error from the spacing of the rates is that of the interpolation.
    """
    apart = [
        [_find_window({**losses, at: loss + sign * noise}, tolerance).width for sign in (-1, 1)]
        for at, loss in losses.items()
        if math.isfinite(loss)
    ]
    return replace(_find_window(losses, tolerance), noise=math.hypot(*((high - low) / 2 for low, high in apart)))


def _find_window(losses: Mapping[float, float], tolerance: float) -> RateWindow:
    tried = sorted(losses)
    best = min(tried, key=lambda at: losses[at])
    limit, place = losses[best] + tolerance * abs(losses[best]), tried.index(best)
    low, open_low, below = _reach(losses, tried[place::-1], limit)
    high, open_high, above = _reach(losses, tried[place:], limit)
    return RateWindow(low, high, open_low, open_high, math.hypot(below, above))


def _reach(losses: Mapping[float, float], tried: Sequence[float], limit: float) -> tuple[float, bool, float]:
    """Follow the rates away from the best one, and interpolate where the loss passes the limit. Return that rate,
    whether no loss passes the limit (then the rate is the outermost), and the interpolation's standard error: its
    distance from a linear interpolation of the loss. Before a diverged run the rate is the last one tried, and the
    error is that of a uniform distribution up to the diverged rate."""
    for near, far in itertools.pairwise(tried):
        if losses[far] > limit:
            inside, outside, end = (loss - losses[tried[0]] for loss in (losses[near], losses[far], limit))
            if not math.isfinite(outside):
                return near, False, abs(far - near) / math.sqrt(12)
            straight = (end - inside) / (outside - inside)
            curved = (math.sqrt(end) - math.sqrt(inside)) / (math.sqrt(outside) - math.sqrt(inside))
            return near + (far - near) * curved, False, abs((far - near) * (curved - straight))
    return tried[-1], True, 0.0
