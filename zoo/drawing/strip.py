"""Draw a model's pattern of layers: a column of cells for each layer, its mixer above its feed-forward."""

from __future__ import annotations

from zoo.drawing.boxes import BETWEEN, PAD, SMALL, DrawnBox
from zoo.drawing.contents import Element, LayerPlan, ModelPlan, TowerPlan
from zoo.drawing.grouping import list_facts
from zoo.drawing.lettering import cut_text, measure_text
from zoo.drawing.model_figure import EDGE, WIDTH, describe_model, draw_header, draw_legend
from zoo.drawing.scene import Box, Label, Scene, Shape, shift_items

CELL, WIDEST = 26.0, 26.0
"""Height of a cell, and maximum width of a layer's cells, in pixels."""

MOST = 370
"""Maximum number of layers with cells. Of a deeper tower every n-th layer is drawn."""

ROW = 18.0


def draw_strip(plan: ModelPlan) -> Scene:
    """Draw the layer pattern of every tower, with a key to the kinds of layer."""
    shapes, y = draw_header(plan, WIDTH)
    for tower in plan.towers:
        drawn = draw_tower_strip(tower, WIDTH - 2 * EDGE, titled=len(plan.towers) > 1)
        shapes += shift_items(drawn.shapes, EDGE, y)
        y += drawn.height + 18
    used = {color for tower in plan.towers for layer in tower.layers for color in list_colors(layer)}
    shapes += shift_items(draw_legend(used), EDGE, y)
    return Scene(WIDTH, y + 22 + EDGE, tuple(shapes), plan.title, describe_model(plan))


def draw_tower_strip(tower: TowerPlan, width: float, *, titled: bool = False, keyed: bool = True) -> DrawnBox:
    """Draw a tower's cells, one column a layer, from left to right; `keyed` adds a line for each kind of layer."""
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
    facts = {layer.kind: _list_facts(layer) for layer in tower.layers}
    for layer in tower.layers if keyed else ():
        y += ROW
        others = [facts[each.kind] for each in tower.layers if each is not layer]
        own = sorted(facts[layer.kind], key=lambda fact: all(fact in each for each in others))  # what differs first
        shapes += shift_items(_draw_key(layer, own, width), 0, y)
    return DrawnBox(tuple(shapes), width, y + 8)


def list_colors(layer: LayerPlan) -> list[str]:
    """List the colours of a layer's cells, from its last part to its first. Norms and bare weights have no cell. A
    mixer with a window is paler."""
    colors = [each.color if each.local else f"{each.color}-line" for each in reversed(_list_large(layer))]
    return colors or ["other-line"]


def _list_large(layer: LayerPlan) -> list[Element]:
    found = [layer.elements[node.part] for node in layer.junctions if node.part in layer.elements]
    return [each for each in found if each.color not in ("norm", "other", "table")]


def _list_facts(layer: LayerPlan) -> list[str]:
    """List the facts of a layer's large parts, without repetition."""
    found: list[str] = []
    for each in _list_large(layer):
        if each.experts:
            found.append(str(each.experts))
        found += [" ".join(filter(None, fact)) for fact in list_facts(each, keeps=True)]
    return list(dict.fromkeys(found))


def _draw_key(layer: LayerPlan, facts: list[str], width: float) -> list[Shape]:
    """Draw the key of a kind of layer in one line: colours, name, parts, then as many facts as fit."""
    colors = list_colors(layer)
    size = 12 / len(colors)
    shapes: list[Shape] = [
        Box(0, -10 + at * size, 10, size - 0.5, color, "" if color.endswith("-line") else f"{color}-line", 1)
        for at, color in enumerate(colors)
    ]
    x = 16.0
    parts = " + ".join(each.title for each in _list_large(layer))
    for text, bold in ((layer.kind, True), (f"× {layer.count}", False), (parts, False)):
        said = cut_text(text, 150 if bold else width - x, SMALL, bold)
        shapes.append(Label(x, 0, said, SMALL, bold))
        x += measure_text(said, SMALL, bold) + PAD
    said = ""
    for fact in facts:
        more = f"{said}{BETWEEN}{fact}" if said else fact
        said = more if measure_text(more, SMALL) <= width - x else said
    return [*shapes, Label(x, 0, said, SMALL, color="muted")] if said else shapes
