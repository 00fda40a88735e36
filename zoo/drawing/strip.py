"""Draw a model's pattern over depth: a column of cells for each layer, its mixer above and its feed-forward below."""

from __future__ import annotations

from zoo.drawing.boxes import PAD, SMALL, DrawnBox
from zoo.drawing.contents import LayerPlan, ModelPlan, TowerPlan
from zoo.drawing.lettering import cut_text, measure_text
from zoo.drawing.model_figure import EDGE, WIDTH, describe_model, draw_header, draw_legend
from zoo.drawing.scene import Box, Label, Scene, Shape, shift_items

CELL, WIDEST = 26.0, 26.0
"""Height of a cell, and the most that a layer's cells are wide."""

MOST = 370
"""Layers that have cells of their own. Of a deeper tower every n-th layer is drawn."""

ROW = 18.0


def draw_strip(plan: ModelPlan) -> Scene:
    """Draw the pattern over depth of every tower, and say what its kinds of layer are."""
    shapes, y = draw_header(plan, WIDTH)
    for tower in plan.towers:
        drawn = draw_tower_strip(tower, WIDTH - 2 * EDGE, titled=len(plan.towers) > 1)
        shapes += shift_items(drawn.shapes, EDGE, y)
        y += drawn.height + 18
    shapes += shift_items(draw_legend(plan), EDGE, y)
    return Scene(WIDTH, y + 22 + EDGE, tuple(shapes), plan.title, describe_model(plan))


def draw_tower_strip(tower: TowerPlan, width: float, *, titled: bool = False, keyed: bool = True) -> DrawnBox:
    """Draw a tower's cells from the first layer at the left to the last at the right; `keyed` adds a line for each kind
    of layer."""
    shapes: list[Shape] = []
    y = 0.0
    if titled:
        shapes.append(Label(0, 12, tower.title, 15, True))
        y = 24.0
    every = -(-len(tower.pattern) // MOST)
    kinds = tower.pattern[::every]
    size = min(WIDEST, width / len(kinds))
    colors = {layer.kind: list_colors(layer) for layer in tower.layers}
    depth = max(map(len, colors.values()))
    gap = 1.5 if size > 5 else 0.5
    for at, kind in enumerate(kinds):
        for row, color in enumerate(colors[kind]):
            height = CELL * depth / len(colors[kind])
            tip = f"layer {at * every}: {kind}"
            border = "" if color.endswith("-line") else f"{color}-line"
            shapes.append(Box(at * size, y + row * height, size - gap, height - gap, color, border, 2, tip=tip))
    y += CELL * depth + 14
    step = next(each for each in (1, 2, 4, 8, 16, 32, 64, 128) if each * size >= 30)
    for at in range(0, len(kinds), step):
        shapes.append(Label(at * size + size / 2, y, str(at * every), SMALL, color="muted", anchor="middle"))
    y += 8
    for layer in tower.layers if keyed else ():
        y += ROW
        shapes += shift_items(_draw_key(layer, width), 0, y)
    return DrawnBox(tuple(shapes), width, y + 8)


def list_colors(layer: LayerPlan) -> list[str]:
    """List the colours of a layer's cells, its last large part first: no norms, no bare weights. Those of a mixer that
    sees a window are lighter."""
    found = [layer.elements[node.part] for node in layer.junctions if node.part in layer.elements]
    large = [each for each in reversed(found) if each.color not in ("norm", "other", "table")]
    return [each.color if each.local else f"{each.color}-line" for each in large] or ["other-line"]


def _draw_key(layer: LayerPlan, width: float) -> list[Shape]:
    shapes: list[Shape] = [Box(0, -9, 10, 10, f"{layer.color}-line", "", 2)]
    name, count = cut_text(layer.kind, 150, SMALL, True), f"× {layer.count}"
    shapes.append(Label(16, 0, name, SMALL, True))
    x = 16 + measure_text(name, SMALL, True) + 8
    shapes.append(Label(x, 0, count, SMALL))
    x += measure_text(count, SMALL) + PAD
    large = [each for each in layer.elements.values() if each.color not in ("norm", "other", "table")]
    said = "  +  ".join(f"{each.title} {next((text for label, text in each.rows if not label), '')}" for each in large)
    return [*shapes, Label(x, 0, cut_text(said, width - x, SMALL), SMALL, color="muted")]
