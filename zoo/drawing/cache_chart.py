"""Draw the bytes of a model's cache against the sequence length, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zoo.drawing.boxes import SMALL
from zoo.drawing.lettering import measure_text
from zoo.drawing.scene import Label, Polygon, Shape, Stroke
from zoo.units import format_si

SHORTEST = 1024
"""Sequence length of the chart's first point, in tokens."""


def list_lengths(longest: int) -> list[int]:
    """List the sequence lengths at which the cache is priced: powers of two, and the longest."""
    first = min(SHORTEST, max(1, longest // 16))
    found = [first << at for at in range(40) if first << at < longest]
    return [*found, longest]


def draw_cache_chart(points: Sequence[tuple[int, float]], width: float, height: float) -> list[Shape]:
    """Draw the (tokens, bytes) points of a cache as an area below a curve. Labels are powers of ten bytes and powers of
    two tokens."""
    sizes = [max(size, 1.0) for _, size in points]
    low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
    high = max(high, low + 1)
    left, bottom = 8 + max(measure_text(_say_power(each), SMALL) for each in range(low, high + 1)), height - 22
    span = math.log2(points[-1][0] / points[0][0]) or 1.0

    def place(tokens: float, size: float) -> tuple[float, float]:
        across = math.log2(tokens / points[0][0]) / span
        return left + across * (width - left), bottom - (math.log10(max(size, 1.0)) - low) / (high - low) * (
            bottom - 10
        )

    shapes: list[Shape] = []
    step = -(-(high - low) // 4)
    for power in range(low, high + 1, step):
        y = place(points[0][0], 10.0**power)[1]
        shapes.append(Stroke(((left, y), (width, y)), "grid", 1))
        shapes.append(Label(left - 8, y + 4.3, _say_power(power), SMALL, color="muted", anchor="end"))
    curve = [place(*point) for point in points]
    shapes.append(Polygon(((left, bottom), *curve, (width, bottom)), "attention"))
    shapes.append(Stroke(tuple(curve), "attention-line", 2.5, 0))
    every = -(-len(points) // 5)
    ticks = [each for at, each in enumerate(points[:-1]) if at % every == 0]
    ends = [(tokens, place(tokens, 1.0)[0]) for tokens, _ in ticks]
    shapes += [
        Label(x, height - 5, say_tokens(tokens), SMALL, color="muted", anchor="start" if at == 0 else "middle")
        for at, (tokens, x) in enumerate(ends)
        if x < width - 74
    ]
    return [*shapes, Label(width, height - 5, say_tokens(points[-1][0]), SMALL, color="muted", anchor="end")]


def _say_power(power: int) -> str:
    return f"{10 ** (power % 3)} {format_si(10.0 ** (power - power % 3), 'B').split()[-1]}"


def say_tokens(tokens: int) -> str:
    """Format a number of tokens: 131072 as `128 Ki`, 500 as `500`."""
    return f"{tokens // 1024:,} Ki" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"
