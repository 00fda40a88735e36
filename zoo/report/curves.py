"""Read curves from a run's lines of metrics, and smooth them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

SMOOTHED_OVER = 0.04  # the window of the training curve's moving average, as a fraction of the run


def read_curve(lines: Iterable[Mapping[str, Any]], name: str, x: str = "tokens") -> tuple[list[float], list[float]]:
    """Read a metric's curve: the values of `x` and of the metric. Lines in which either is missing are left out."""
    points = [(line[x], line[name]) for line in lines if line.get(name) is not None and line.get(x) is not None]
    return [at for at, _ in points], [value for _, value in points]


def smooth(values: list[float], share: float = SMOOTHED_OVER) -> list[float]:
    """Compute the moving average over a fraction of the points. At the start, where the loss falls fast, the window is
    shortened to stay symmetric."""
    half, sums = int(share * len(values) / 2), [0.0, *accumulate(values)]
    edges = [(max(at - half, 0), min(at + min(half, at) + 1, len(values))) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]
