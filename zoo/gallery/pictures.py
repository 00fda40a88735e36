"""Draw pictures for pages: a model's architecture, its layers as a small strip, the choices of an axis."""

from __future__ import annotations

from typing import Any

from zoo.analysis.axes import list_axes
from zoo.drawing.axis_figure import Choice, draw_block, list_choices
from zoo.drawing.contents import ModelPlan
from zoo.drawing.masks import MaskGrid, find_grid
from zoo.drawing.model_figure import draw_model
from zoo.drawing.scene import frame_items
from zoo.drawing.strip import list_colors
from zoo.drawing.vector import CLASS, write_svg
from zoo.gallery.rendering import mark_safe
from zoo.model.attention.base import Attention
from zoo.report.svg import escape_text

LONG, TALL = 240.0, 18.0
"""Width and height of the strip of a tower's layers, in pixels."""


def draw_figure(plan: ModelPlan) -> Any:
    """Draw a model's architecture as an SVG element."""
    return mark_safe(write_svg(draw_model(plan), inline=True))


def draw_strips(plan: ModelPlan) -> Any:
    """Draw the layers of each tower as a strip without text, from left to right, coloured by component. Cells of one
    colour are one SVG path."""
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


CELL = 9
"""Side of a mask's cell, in pixels."""


def draw_choices(axis: str) -> dict[str, Any]:
    """Draw the choices of an axis that have a figure, by name: the mask of an attention, the structure of a block."""
    found = {each.name: _draw_choice(axis, each) for each in (list_choices(axis) if axis in list_axes() else ())}
    return {name: mark_safe(svg) for name, svg in found.items() if svg}


def _draw_choice(axis: str, choice: Choice) -> str:
    if axis == "block":
        return write_svg(frame_items(draw_block(choice, 330).shapes, f"Block {choice.name}", margin=4), inline=True)
    if isinstance(choice.component, Attention):
        grid = find_grid(choice.component, choice.causal)
        return _draw_mask(grid, f"{choice.element.color}-line", f"Who sees whom in {choice.name}")
    return ""


def _draw_mask(grid: MaskGrid, color: str, title: str) -> str:
    """Draw a mask's grid, queries downwards and keys to the right. Pooled keys get a second grid."""
    side = CELL * len(grid.seen)
    width = side + 1 + (side + 16 if grid.pooled else 0)
    drawn = [
        f'<svg class="{CLASS} mask" viewBox="0 0 {width} {side + 1}" width="{width}" role="img" '
        f'aria-label="{escape_text(title)}"><title>{escape_text(title)}</title>'
    ]
    for left, seen, shade in ((0, grid.seen, color), (side + 16, grid.pooled, "table-line")):
        if seen:
            cells = ((left + x * CELL, y * CELL) for y, row in enumerate(seen) for x, each in enumerate(row) if each)
            path = "".join(f"M{x + 1} {y + 1}h{CELL - 1}v{CELL - 1}h-{CELL - 1}z" for x, y in cells)
            across = CELL * len(seen[0]) + 1
            drawn.append(f'<rect class="f-grid" x="{left}" width="{across}" height="{side + 1}" rx="2"/>')
            drawn.append(f'<path class="f-{shade}" d="{path}"/>')
    return "".join([*drawn, "</svg>"])
