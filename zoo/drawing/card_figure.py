"""Draw a model's card to share: exact figures, pattern of layers, cache by context length, and special components."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zoo.costs.cache_sizes import kv_cache
from zoo.costs.setup import Setup
from zoo.drawing.boxes import BETWEEN, SMALL, wrap_facts
from zoo.drawing.contents import ModelPlan
from zoo.drawing.grouping import group_layers
from zoo.drawing.lettering import cut_text, measure_text
from zoo.drawing.model_figure import describe_model
from zoo.drawing.scene import Box, Label, Polygon, Scene, Shape, Stroke, find_extent, shift_items
from zoo.drawing.strip import draw_tower_strip, list_colors
from zoo.units import format_si

WIDTH, HEIGHT = 1200.0, 630.0
EDGE = 56.0
LARGE, MIDDLE, TEXT = 52.0, 30.0, 18.0
MOST_FACTS = 6
SHORTEST = 1024
"""Sequence length of the first point in the chart of the cache, in tokens."""


def draw_card(plan: ModelPlan, spec: Any) -> Scene:
    """Draw a model's card in 1200 × 630 pixels, the size of the preview that sites show for a link."""
    inner = WIDTH - 2 * EDGE
    shapes: list[Shape] = [Box(0, 0, WIDTH, 10, "attention-line", "", 0)]
    size = next((each for each in (LARGE, 44.0, 36.0) if measure_text(plan.title, each, True) <= inner), 30.0)
    shapes.append(Label(EDGE, 92, cut_text(plan.title, inner, size, True), size, True))
    shapes += _draw_tiles(plan, inner)
    half = inner / 2 - 24
    patterns = _draw_patterns(plan, half)
    shapes += shift_items(patterns, EDGE, 236)
    top = 236 + find_extent(patterns).bottom + 30
    shapes += shift_items(_draw_facts(plan, half, HEIGHT - top - 60), EDGE, top)
    shapes += shift_items(_draw_cache(plan, spec, half), EDGE + half + 48, 236)
    shapes.append(Label(EDGE, HEIGHT - 28, say_exactly(plan), 15, color="muted"))
    shapes.append(Label(WIDTH - EDGE, HEIGHT - 28, "drawn and priced by Zoo", 15, color="muted", anchor="end"))
    return Scene(WIDTH, HEIGHT, tuple(shapes), plan.title, describe_model(plan))


def say_exactly(plan: ModelPlan) -> str:
    """Format a model's numbers of parameters and bytes of cache with all digits."""
    params, cache = plan.figures["params"], plan.figures["kv_cache"]
    found = [f"{params['total']:,} parameters"]
    found += [f"{params['active']:,} active"] if params["active"] != params["total"] else []
    if plan.generates:
        grown = cache["bytes_per_token"] * cache["tokens"] + cache["cross_bytes"] + cache["state_bytes"]
        until = " until windows are full" if cache["bytes"] < grown else ""
        found.append(f"{cache['bytes_per_token']:,} bytes of cache per token{until}")
    return " · ".join(found)


def _draw_tiles(plan: ModelPlan, inner: float) -> list[Shape]:
    shapes: list[Shape] = []
    x = 0.0
    for value, name in plan.list_tiles():
        size = max(measure_text(value, MIDDLE, True), measure_text(name, TEXT)) + 36
        if x + size > inner + 36:
            break
        shapes += [
            Label(EDGE + x, 160, value, MIDDLE, True),
            Label(EDGE + x, 186, name, TEXT, color="muted"),
        ]
        x += size
    return shapes


def _draw_patterns(plan: ModelPlan, width: float) -> list[Shape]:
    """Draw the layer patterns of all towers side by side, coloured by kind of layer."""
    share = (width - 20 * (len(plan.towers) - 1)) / len(plan.towers)
    shapes: list[Shape] = []
    for at, tower in enumerate(plan.towers):
        drawn = draw_tower_strip(tower, share, keyed=False)
        shapes += shift_items(drawn.shapes, at * (share + 20), 0)
    colors = {color for tower in plan.towers for layer in tower.layers for color in list_colors(layer)}
    if not all(each.endswith("-line") for each in colors):
        shapes.append(Label(0, find_extent(shapes).bottom + 22, "paler: with a window", 15, color="muted"))
    return shapes


def _draw_facts(plan: ModelPlan, width: float, height: float) -> list[Shape]:
    shapes: list[Shape] = []
    y = 0.0
    for color, text in list_special(plan)[:MOST_FACTS]:
        lines = wrap_facts(text, width - 26, TEXT)[:2]
        if y + 26 * len(lines) > height:
            break
        shapes.append(Box(0, y + 2, 13, 13, f"{color}-line", "", 3))
        for line in lines:
            shapes.append(Label(26, y + 15, line, TEXT))
            y += 26
        y += 5
    return shapes


def list_special(plan: ModelPlan) -> list[tuple[str, str]]:
    """List a model's components, each as (colour, text): mixers and feed-forwards with their number of layers, then the
    towers' special components outside the layers."""
    counts: dict[tuple[str, str, str], int] = {}
    for group in (each for tower in plan.towers for each in group_layers(tower.layers)):
        for element in group.elements.values():
            if element.color not in ("norm", "other", "table"):
                plain = next((text for label, text in element.rows if not label), "")
                if element.experts:
                    plain = BETWEEN.join(filter(None, (str(element.experts), plain)))
                key = element.color, element.about or element.title, plain
                counts[key] = counts.get(key, 0) + sum(layer.count for layer in group.layers)
    found = [
        (color, f"{count} × {name}" + (f": {text}" if text else "")) for (color, name, text), count in counts.items()
    ]
    return found + [("other", note) for tower in plan.towers for note in tower.notes]


def _draw_cache(plan: ModelPlan, spec: Any, width: float) -> list[Shape]:
    """Draw the chart of the cache. Returns no shapes for a model without a cache."""
    tokens = plan.figures["kv_cache"]["tokens"]
    points = [(each, float(kv_cache(spec, Setup(context=each))["bytes"])) for each in list_lengths(tokens)]
    if not plan.generates or len(points) < 2 or not points[-1][1]:
        return []
    said = f"{format_si(points[-1][1], 'B')} at {say_tokens(tokens)} tokens, bf16"
    return [
        Label(0, 14, "Cache of one sequence", TEXT, True),
        Label(width, 14, said, TEXT, color="muted", anchor="end"),
        *shift_items(draw_cache_chart(points, width, 270), 0, 34),
        Stroke(((0, 26), (width, 26)), "grid", 1),
    ]


# ---------------------------------------------------------------- the cache by sequence length


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
