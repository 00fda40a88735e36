"""Compute the compute-optimal speedup of a variant over a baseline at several scales, from the scaling law of each.

For C FLOPs the variant's law has an optimum of loss L. The baseline's law reaches L at its own optimum for C_base
FLOPs. The speedup is C_base / C, so 1.2 means that the baseline needs 20 % more compute. If it falls with C, the gain
does not survive scale. (An effective speedup holds the parameters fixed instead, and counts data.)

Intervals are Student's on ln S: the standard deviation over pairs of resampled laws, with the degrees of freedom of the
runs. Percentiles of few resampled runs would cover too little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, stdev
from typing import Any

from pydantic import TypeAdapter

from zoo.analysis.scaling.fitting import FittedLaw
from zoo.analysis.scaling.law import FLOPS, Law
from zoo.analysis.verdict.speedup import Speedup
from zoo.analysis.verdict.student import student_quantile
from zoo.errors import ConfigError
from zoo.units import format_count, format_si

SHARE = 0.975
"""The quantile of a 95 % interval."""


@dataclass(frozen=True)
class LawArm:
    """An arm's fitted law, and the FLOPs that it spends for each token and parameter."""

    fit: FittedLaw
    flops: float = FLOPS


@dataclass(frozen=True)
class SpeedupTrend:
    """The speedups at some numbers of FLOPs, and their slope: d ln S / d ln C, with its 95 % interval. `doubt` says why
    an optimum beyond the points of its law is uncertain."""

    flops: tuple[float, ...]
    speedups: tuple[Speedup, ...]
    slope: float
    interval: tuple[float, float] | None
    doubt: str | None = None

    @property
    def survives(self) -> str:
        """Say whether the gain survives scale, by the interval of the slope."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "no trend is told"
        return "falls with scale" if self.slope < 0 else "rises with scale"


def read_trends(data: Mapping[str, Any]) -> dict[str, SpeedupTrend]:
    """Read trends by arm from plain data (`dataclasses.asdict`)."""
    return TypeAdapter(dict[str, SpeedupTrend]).validate_python(data)


def follow_speedup(base: LawArm, arm: LawArm, flops: Sequence[float]) -> SpeedupTrend:
    """Follow the compute-optimal speedup over numbers of FLOPs, at least two. Resampled laws are paired in order: fits
    with equally many runs and the same seed draw the same runs. Raises ConfigError for a law without an optimum."""
    ratio, products = base.flops / arm.flops, [each / arm.flops * FLOPS for each in flops]
    logs = _list_logs(base.fit.law, arm.fit.law, ratio, products)
    resampled = []
    for own, other in zip(base.fit.resampled, arm.fit.resampled, strict=False):
        try:
            resampled.append(_list_logs(own, other, ratio, products))
        except ConfigError:  # a resample without an optimum: of two sizes, say
            continue
    noises = [each.fit.estimate_noise() for each in (base, arm)]
    freedom = min(0 if each is None else each.freedom for each in noises)
    slope = _find_slope(flops, logs)
    found = [_find_ends(log, [each[at] for each in resampled], freedom) for at, log in enumerate(logs)]
    return SpeedupTrend(
        tuple(flops),
        tuple(
            Speedup(math.exp(log), None if ends is None else (math.exp(ends[0]), math.exp(ends[1])))
            for log, ends in zip(logs, found, strict=True)
        ),
        slope,
        _find_ends(slope, [_find_slope(flops, each) for each in resampled], freedom),
        next(filter(None, (_find_doubt(each, flops) for each in (base, arm))), None),
    )


def _find_doubt(arm: LawArm, flops: Sequence[float]) -> str | None:
    """Say why `zoo predict` would refuse the arm's optimum for some of the FLOPs; None if it refuses none."""
    for each in flops if len(arm.fit.points) else ():
        best = arm.fit.law.optimum(each / arm.flops * FLOPS)
        try:
            arm.fit.check_reach(best.params, best.tokens)
        except ConfigError as error:
            at = f"{format_count(best.params)} parameters and {format_count(best.tokens)} tokens"
            return f"the best for {format_si(each)}FLOPs are {at}; {error.faults[0]}"
    return None


def _list_logs(base: Law, arm: Law, ratio: float, products: Sequence[float]) -> list[float]:
    """List ln S by two laws; `products` are 6·N·D, and `ratio` is the baseline's FLOPs a token and parameter over the
    arm's."""
    return [math.log(base.flops_for(arm.optimum(each).loss) * ratio / each) for each in products]


def _find_slope(flops: Sequence[float], logs: Sequence[float]) -> float:
    return linear_regression(list(map(math.log, flops)), logs).slope if all(map(math.isfinite, logs)) else math.nan


def _find_ends(value: float, resampled: Sequence[float], freedom: int) -> tuple[float, float] | None:
    """Find the ends of Student's interval of a value. None without degrees of freedom, with fewer than two resamples,
    and if the value or a resample is not finite."""
    if freedom < 1 or len(resampled) < 2 or not all(map(math.isfinite, (value, *resampled))):
        return None
    half = student_quantile(SHARE, freedom) * stdev(resampled)
    return value - half, value + half
