"""Draw a tower as a column: the parts before its layers, the folded pattern of layers, the parts after."""

from __future__ import annotations

from dataclasses import replace

from zoo.drawing.boxes import PLAIN, SMALL, DrawnBox, Styling, draw_box
from zoo.drawing.contents import Element, TowerPlan
from zoo.drawing.folding import Fold
from zoo.drawing.lettering import cut_text, measure_text
from zoo.drawing.scene import Box, Label, Shape, Stroke, shift_items

PLATE, SEAM = 26.0, 4.0
"""Height of a plate, which stands for a run of layers, and the space between two plates, in pixels."""

RISE = 20.0
MOST_PLATES = 14
"""Maximum number of plates. A longer pattern is drawn with a cell for each layer."""

MOST_CELLS, TALLEST = 160, 420.0
"""Maximum number of layers with a cell each, and the height of all cells together in pixels."""

LANE, BRACKET = 14.0, 5.0
"""Distances from the column, in pixels: of the wires of boxes outside the residual stream, and of the bracket around
the layers."""

INSET = 6.0
TIMES = 34.0
"""Space at the right for numbers of repetitions, in pixels."""


def draw_stack(tower: TowerPlan, width: float, look: Styling = PLAIN) -> DrawnBox:
    """Draw a tower's column, `width` wide. The input is at the bottom; below it are the layers' inputs outside the
    residual stream."""
    plates = sum(len(fold.runs) for fold in tower.folds)
    middle = _draw_plates(tower, width, look) if plates <= MOST_PLATES else _draw_cells(tower, width)
    pieces = [
        *[draw_box(each, width, look) for each in reversed(tower.after)],
        middle,
        *[draw_box(each, width, look) for each in reversed(tower.before)],
    ]
    shapes: list[Shape] = []
    y, center = 16.0 + RISE, width / 2
    output = "logits" if any(each.color == "table" for each in tower.after) else "hidden states"
    shapes.append(Label(center, 11, output, SMALL, color="muted", anchor="middle"))
    top, above = 0.0, {}  # of the layers; and of the wire above each element before them
    names = [each.name for each in reversed(tower.before)]
    for at, piece in enumerate(pieces):
        top = y if piece is middle else top
        if at >= len(pieces) - len(names):
            above[names[at - len(pieces)]] = y - RISE / 2
        shapes.append(Stroke(((center, y), (center, y - RISE + 2)), arrow=True))
        shapes += shift_items(piece.shapes, (width - piece.width) / 2, y)
        y += piece.height + RISE
    shapes.append(Stroke(((center, y), (center, y - RISE + 2)), arrow=True))
    shapes.append(Label(center, y + 13, "tokens", SMALL, color="muted", anchor="middle"))
    y += 18
    for element in tower.beside:
        drawn, y = draw_box(element, width, look), y + RISE / 2
        box, *texts = shift_items(drawn.shapes, 0, y)
        assert isinstance(box, Box)
        shapes += [replace(box, dashed=True), *texts]
        shapes += _draw_beside_wires(
            y + drawn.height / 2, top, middle.height, width, above.get(tower.fed.get(element.name, ""))
        )
        y += drawn.height
    return DrawnBox(tuple(shapes), width, y)


def _draw_beside_wires(y: float, top: float, height: float, width: float, read: float | None) -> list[Shape]:
    """Draw the wires of a box at y, outside the residual stream. One leads from the box to a bracket around all layers
    (from `top`, `height` high). If the box reads the stream, another leads to it from the stream at y = `read`."""
    bracket = ((0.0, top), (-BRACKET, top), (-BRACKET, top + height), (0.0, top + height))
    entry = top + height / 2
    way = ((0.0, y), (-LANE, y), (-LANE, entry), (-BRACKET, entry))
    wires: list[Shape] = [Stroke(bracket, radius=3), Stroke(way, arrow=True, dashed=True)]
    if read is not None:
        wires.append(Stroke(((width / 2, read), (width + LANE, read), (width + LANE, y), (width, y)), arrow=True))
    return wires


def _draw_plates(tower: TowerPlan, width: float, look: Styling) -> DrawnBox:
    """Draw a plate for each run of equal layers, the first at the bottom, and frames around repeats."""
    shapes: list[Shape] = []
    y = 0.0
    for fold in reversed(tower.folds):
        drawn = _draw_fold(tower, fold, width, look)
        shapes += shift_items(drawn.shapes, 0, y)
        y += drawn.height + SEAM
    return DrawnBox(tuple(shapes), width, y - SEAM)


def _draw_fold(tower: TowerPlan, fold: Fold, width: float, look: Styling) -> DrawnBox:
    repeats = fold.times > 1
    left, size = (INSET, width - INSET - TIMES) if repeats else (0.0, width)
    shapes: list[Shape] = []
    y = INSET if repeats else 0.0
    for kind, count in reversed(fold.runs):
        shapes += shift_items(_draw_plate(tower, kind, count, size, look), left, y)
        y += PLATE + SEAM
    height = y - SEAM + (INSET if repeats else 0.0)
    if repeats:
        times = f"× {fold.times}"
        frame = Box(0, 0, width, height, "", "wire", 8, dashed=True)
        shapes = [frame, *shapes, Label(width - TIMES / 2, height / 2 + 4.5, times, SMALL, True, anchor="middle")]
    return DrawnBox(tuple(shapes), width, height)


def _draw_plate(tower: TowerPlan, kind: str, count: int, width: float, look: Styling) -> list[Shape]:
    layer = tower.layer(kind)
    fill, line, ink = look.fill(Element(kind, kind, color=layer.color, share=layer.share))
    times = f"× {count}" if count > 1 else ""
    room = width - 18 - (measure_text(times, SMALL, True) + 8 if times else 0)
    shapes: list[Shape] = [
        Box(0, 0, width, PLATE, fill, "lit" if (kind, "kind") in look.lit else line, 5, name=kind),
        Label(9, PLATE / 2 + 4.3, cut_text(kind, room, SMALL), SMALL, color=ink),
    ]
    return [*shapes, Label(width - 9, PLATE / 2 + 4.3, times, SMALL, True, ink, "end")] if times else shapes


def _draw_cells(tower: TowerPlan, width: float) -> DrawnBox:
    """Draw a numbered cell for each layer, the first at the bottom. In a very deep tower a cell is several layers."""
    count = min(len(tower.pattern), MOST_CELLS)
    size = min(9.0, TALLEST / count)
    left, right = 30.0, width - 30.0
    shapes: list[Shape] = []
    for at in range(count):
        layer = tower.layer(tower.pattern[at * len(tower.pattern) // count])
        y = (count - 1 - at) * size
        shapes.append(Box(left, y, right - left, size - 1, f"{layer.color}-line", "", 1.5, tip=f"{at}: {layer.kind}"))
    step = next(each for each in (4, 8, 10, 20, 50) if each * size >= 18)
    for at in range(0, count, step):
        y = (count - 1 - at) * size + size / 2 + 4
        shapes.append(Label(left - 6, y, str(at * len(tower.pattern) // count), SMALL, color="muted", anchor="end"))
    return DrawnBox(
        (Box(left - 4, -4, right - left + 8, count * size + 7, "", "line", 5), *shapes), width, count * size
    )
