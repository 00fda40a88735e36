"""Draw a model's figures for a page: its architecture, and its layers as a strip that stands beside its name."""

from __future__ import annotations

from typing import Any

from zoo.drawing.contents import ModelPlan
from zoo.drawing.model_figure import draw_model
from zoo.drawing.strip import list_colors
from zoo.drawing.vector import CLASS, write_svg
from zoo.gallery.rendering import mark_safe

LONG, TALL = 240.0, 18.0
"""Size of the strip of a tower's layers, in pixels."""


def draw_figure(plan: ModelPlan) -> Any:
    """Draw a model's architecture as an SVG element."""
    return mark_safe(write_svg(draw_model(plan), inline=True))


def draw_strips(plan: ModelPlan) -> Any:
    """Draw the layers of each tower from the first at the left to the last at the right, coloured by what they are, in
    a strip without words. Cells of a colour are one path."""
    rows = []
    for tower in plan.towers:
        colors = {layer.kind: list_colors(layer) for layer in tower.layers}
        size = min(LONG / len(tower.pattern), 10.0)
        paths: dict[str, list[str]] = {}
        for at, kind in enumerate(tower.pattern):
            height = TALL / len(colors[kind])
            for row, color in enumerate(colors[kind]):
                cell = f"M{at * size:.4g} {row * height:.4g}h{size * 0.86:.3g}v{height - 1:.3g}H{at * size:.4g}z"
                paths.setdefault(color, []).append(cell)
        cells = "".join(f'<path class="f-{color}" d="{"".join(each)}"/>' for color, each in paths.items())
        rows.append(f'<svg class="{CLASS} strip" viewBox="0 0 {LONG:g} {TALL:g}" aria-hidden="true">{cells}</svg>')
    return mark_safe("".join(rows))
