"""Draw the figure of a model: its name and figures, each tower's column, and a panel for each structure of layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from zoo.drawing.boxes import PLAIN, SMALL, DrawnBox, Styling
from zoo.drawing.contents import ModelPlan, TowerPlan
from zoo.drawing.grouping import AlikeLayers, group_layers
from zoo.drawing.lettering import cut_text, measure_text
from zoo.drawing.panels import draw_join, draw_panel
from zoo.drawing.scene import Box, Label, Scene, Shape, Stroke, find_extent, shift_items
from zoo.drawing.stack import draw_stack

WIDTH = 800.0
"""Width of a figure in pixels. Scaled to 600 pixels, its smallest text (SMALL) is 9 pixels high."""

NARROWEST = 640.0
EDGE = 26.0
COLUMN = 176.0
"""Width of a tower's column, in pixels."""

BETWEEN = 22.0
TITLE, TILE = 25.0, 17.0
SIZES = (300.0, 280.0, 260.0, 250.0, 240.0, 230.0, 220.0, 210.0, 200.0)
"""Widths of boxes in panels, in pixels. The widest that fits is used."""

NARROW_SIZES = (190.0, 170.0, 150.0, 130.0, 112.0)
"""Widths of boxes, in pixels, in a panel that needs the whole width of the figure."""

GUTTER = 14.0

NAMES = {
    "attention": "attention",
    "recurrent": "recurrent mixer",
    "ffn": "feed-forward",
    "experts": "experts",
    "norm": "norm",
    "table": "embedding, head",
    "other": "other",
}
"""Meanings of the colours, in the order of the legend."""


def draw_model(plan: ModelPlan, look: Styling = PLAIN, extra: Callable[[float], list[Shape]] | None = None) -> Scene:
    """Draw a model's figure. `extra` gets a width and returns further shapes, which are placed below the header."""
    shapes: list[Shape] = []
    y = 0.0
    for tower in plan.towers:
        drawn = draw_tower(tower, plan, WIDTH - 2 * EDGE, look)
        shapes += shift_items(drawn.shapes, 0, y)
        y += drawn.height + BETWEEN
    if look is PLAIN:
        legend = draw_legend(_list_colors(plan))
        layers = [layer for tower in plan.towers for layer in tower.layers]
        if any(node.sign == "‖" for layer in layers for node in layer.junctions):
            x = find_extent(legend).right + 18
            legend += [
                *shift_items(draw_join("‖").shapes, x, -2),
                Label(x + 24, 11.5, "concatenated", SMALL, color="muted"),
            ]
        shapes += shift_items(legend, 0, y)
        y += 22
    width = max(find_extent(shapes).right + 2 * EDGE, NARROWEST)
    header, top = draw_header(plan, width)
    if extra is not None:
        beside = extra(width - 2 * EDGE)
        header += shift_items(beside, EDGE, top)
        top += find_extent(beside).bottom + BETWEEN
    whole = (*header, *shift_items(shapes, EDGE, top))
    return Scene(width, top + y + EDGE - 10, whole, plan.title, describe_model(plan))


def draw_header(plan: ModelPlan, width: float) -> tuple[list[Shape], float]:
    """Draw a model's name and figures. Return the shapes, and the y at which the figure continues."""
    y = EDGE + 16
    shapes: list[Shape] = [Label(EDGE, y, cut_text(plan.title, width - 2 * EDGE, TITLE, True), TITLE, True)]
    y += 36
    x = EDGE
    for value, name in plan.list_tiles():
        size = max(measure_text(value, TILE, True), measure_text(name, SMALL)) + 26
        if x + size > width:
            x, y = EDGE, y + 44
        shapes += [Label(x, y, value, TILE, True), Label(x, y + 17, name, SMALL, color="muted")]
        x += size
    y += 32
    return [*shapes, Stroke(((EDGE, y), (width - EDGE, y)), "line", 1)], y + 20


def draw_tower(tower: TowerPlan, plan: ModelPlan, width: float, look: Styling) -> DrawnBox:
    """Draw a tower: its column at the left, the panels of its layers at the right in as many rows as needed."""
    shapes: list[Shape] = []
    top = 0.0
    if len(plan.towers) > 1:
        shapes.append(Label(0, 12, tower.title, 15, True))
        top = 26.0
    for note in tower.notes:
        shapes.append(Label(0, top + 10, cut_text(note, width, SMALL), SMALL, color="muted"))
        top += 20
    stack = draw_stack(tower, COLUMN, look)
    panels = draw_panels(group_layers(tower.layers), width - COLUMN - BETWEEN, look)
    if panels.width > width - COLUMN - BETWEEN + 1:  # too wide to stand beside the column
        shapes += shift_items(stack.shapes, 0, top)
        shapes += shift_items(panels.shapes, 0, top + stack.height + BETWEEN)
        return DrawnBox(tuple(shapes), width, top + stack.height + BETWEEN + panels.height)
    height = max(stack.height, panels.height)
    shapes += shift_items(stack.shapes, 0, top + max(0.0, (height - stack.height) / 2))
    shapes += shift_items(panels.shapes, COLUMN + BETWEEN, top + max(0.0, (height - panels.height) / 2))
    return DrawnBox(tuple(shapes), width, top + height)


def draw_panels(groups: Sequence[AlikeLayers], width: float, look: Styling) -> DrawnBox:
    """Draw panels in rows: two side by side, or one that needs the whole width."""
    rooms = (width,) if len(groups) == 1 else ((width - GUTTER) / 2, width)
    drawn = [_draw_fitting(group, rooms, look) for group in groups]
    shapes: list[Shape] = []
    x = y = row = 0.0
    for panel in drawn:
        if x and x + panel.width > width + 0.5:
            x, y, row = 0.0, y + row + GUTTER, 0.0
        shapes += shift_items(panel.shapes, x, y)
        x, row = x + panel.width + GUTTER, max(row, panel.height)
    extent = find_extent(shapes)
    return DrawnBox(tuple(shapes), extent.right, y + row)


def _draw_fitting(group: AlikeLayers, rooms: Sequence[float], look: Styling) -> DrawnBox:
    """Draw a panel in the first of `rooms` (widths) that can hold it, with the widest boxes that fit."""
    for room in rooms:
        for size in SIZES:
            panel = draw_panel(group, size, look)
            if panel.width <= room:
                return panel
    drawn = [draw_panel(group, size, look) for size in NARROW_SIZES]  # as wide as the figure, below the column
    return next((each for each in drawn if each.width <= WIDTH - 2 * EDGE), drawn[-1])


def _list_colors(plan: ModelPlan) -> set[str]:
    elements = [each for tower in plan.towers for layer in tower.layers for each in layer.elements.values()]
    elements += [each for tower in plan.towers for each in tower.ends]
    return {each.color for each in elements}


def draw_legend(used: Collection[str]) -> list[Shape]:
    """Draw a legend of the `used` colours. If full colours (`attention-line`) are among them, the legend explains that
    paler ones mean mixers with a window."""
    shapes: list[Shape] = []
    x = 0.0
    full = any(each.endswith("-line") for each in used)
    names = [(f"{color}-line" if full else color, name) for color, name in NAMES.items()]
    paler = [(color, f"{name} with a window: paler") for color, name in NAMES.items() if full]
    for color, name in (*names, *paler):
        if color in used:
            border = "" if color.endswith("-line") else f"{color}-line"
            shapes += [Box(x, 0, 14, 14, color, border, 4), Label(x + 20, 11.5, name, SMALL, color="muted")]
            x += 20 + measure_text(name, SMALL) + 18
    return shapes


def describe_model(plan: ModelPlan) -> str:
    """Describe a model's figure in words, for readers who cannot see it."""
    said = [f"{value} {name}" for value, name in plan.list_tiles()]
    for tower in plan.towers:
        for layer in tower.layers:
            parts = ", ".join(
                layer.elements[node.part].title for node in layer.junctions if node.part in layer.elements
            )
            said.append(f"{tower.title.lower()}: {layer.count} layers of kind {layer.kind} ({parts})")
    return "; ".join(said) + "."
