"""Draw a group of layers as a panel: boxes, sums and wires, with the input at the bottom and the result at the top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.drawing.boxes import HEADING, PAD, PLAIN, SMALL, DrawnBox, Styling, draw_box, is_thin
from zoo.drawing.contents import Element
from zoo.drawing.facts import spell
from zoo.drawing.grouping import AlikeLayers
from zoo.drawing.lettering import cut_text, measure_text
from zoo.drawing.placement import NodePlace, add_outside, assign_lanes, place_nodes
from zoo.drawing.scene import Box, Label, Shape, Stroke, shift_items
from zoo.drawing.wiring import Junction

RISE = 26.0
"""Height between two rows, in pixels, with room for wires."""

BRANCH = 9.0
"""Distance of a branch above the row that it leaves, in pixels."""

LANE = 13.0
RADIUS = 9.0
"""Radius in pixels of the circle at which values join."""

MARGIN = 14.0
"""Space inside a panel's border, in pixels."""

SIDE = 20.0
"""Space between columns, in pixels."""

ELSEWHERE = {
    "memory": "encoder output",
    "lent": "another layer's keys",
    "embedded": "embedding",
    "pass": "position bias",
}
"""Names of a layer's inputs outside the residual stream, for channels whose own names are unclear."""


@dataclass
class _Layout:
    """The positions of a layer's nodes in a panel, and the shapes drawn so far. `last` is the output node's number."""

    nodes: Mapping[int, Junction]
    spots: Mapping[int, NodePlace]
    boxes: Mapping[int, DrawnBox]
    lanes: Mapping[tuple[int | str, int], int]
    last: int
    centers: list[float]
    tops: list[float]
    heights: list[float]
    left: float
    bottom: float
    shapes: list[Shape] = field(default_factory=list)

    def center(self, number: int) -> tuple[float, float]:
        spot = self.spots[number]
        return self.centers[spot.column], self.tops[spot.row] + self.heights[spot.row] / 2

    def top(self, number: int | str) -> float:
        return self.bottom if isinstance(number, str) else self.center(number)[1] - self.boxes[number].height / 2

    def half(self, number: int) -> float:
        return self.boxes[number].width / 2

    def branch(self, source: int | str) -> float:
        """The y at which wires branch off the wire above a source."""
        return (self.bottom + 1 if isinstance(source, str) else self.tops[self.spots[source].row]) - BRANCH

    def entry(self, number: int) -> float:
        """The y at which wires from the side join the wire that enters a node from below."""
        row = self.spots[number].row
        return self.tops[row] + self.heights[row] + BRANCH

    def blocked(self, source: int, end: int) -> bool:
        """Whether another node lies in the row of `end`, between `end` and the column of `source`."""
        row, (first, last) = self.spots[end].row, sorted((self.spots[end].column, self.spots[source].column))
        return any(each.row == row and first < each.column < last for each in self.spots.values())


def draw_panel(group: AlikeLayers, width: float, look: Styling = PLAIN) -> DrawnBox:
    """Draw a panel. Its boxes are `width` wide, or narrower if several stand side by side."""
    layout = _lay_out(group, width, look)
    for number in layout.nodes:
        x, y = layout.center(number)
        drawn = layout.boxes[number]
        layout.shapes += shift_items(drawn.shapes, x - drawn.width / 2, y - drawn.height / 2)
    _draw_wires(layout)
    return _frame(group, layout, look)


def _lay_out(group: AlikeLayers, width: float, look: Styling) -> _Layout:
    nodes, spots, lanes = place_group(group)
    boxes = {node.number: _draw_node(node, group.elements, width, look) for node in nodes}
    count = 1 + max(spot.row for spot in spots.values())
    heights = [max(boxes[number].height for number, spot in spots.items() if spot.row == row) for row in range(count)]
    tops, y = [0.0] * count, RISE * 0.6
    for row in reversed(range(count)):
        tops[row] = y
        y += heights[row] + RISE
    left = LANE * (1 + max(lanes.values(), default=-1)) + 4
    centers, x = [], left
    for column in range(1 + max(spot.column for spot in spots.values())):
        size = max(boxes[number].width for number, spot in spots.items() if spot.column == column)
        centers.append(x + size / 2)
        x += size + SIDE
    by_number, last = {node.number: node for node in nodes}, len(group.junctions) - 1
    return _Layout(by_number, spots, boxes, lanes, last, centers, tops, heights, left, y - 6)


def place_group(
    group: AlikeLayers,
) -> tuple[list[Junction], dict[int, NodePlace], dict[tuple[int | str, int], int]]:
    """Place the nodes of a group, with the values from outside its layers. Return the nodes, their places and the lanes
    of wires that pass around nodes. The main chain follows the heaviest nodes: those of the largest boxes."""
    nodes = add_outside(group.junctions)
    elements = {node.number: group.elements.get(node.part) for node in nodes}
    weights = {at: 0.1 if each is None else 1.0 if is_thin(each) else 10.0 for at, each in elements.items()}
    spots = place_nodes(nodes, weights, len(group.junctions) - 1)
    return nodes, spots, _list_lanes(nodes, spots)


def _draw_node(node: Junction, elements: Mapping[str, Element], width: float, look: Styling) -> DrawnBox:
    if node.part:
        return draw_box(elements.get(node.part, Element(node.part, spell(node.part))), width, look)
    if not node.sources:
        return _draw_outside(ELSEWHERE.get(node.sign, node.sign))
    if len(node.sources) == 1 and len(node.sign) > 1:
        return _draw_factor(node.sign)
    return draw_join(node.sign)


def draw_join(sign: str) -> DrawnBox:
    """Draw the circle at which values join, with its sign."""
    size, half = 2 * RADIUS, 4.2
    circle = Box(0, 0, size, size, "paper", "wire", RADIUS, 1.3)
    strokes: dict[str, list[tuple[tuple[float, float], ...]]] = {
        "+": [((-half, 0), (half, 0)), ((0, -half), (0, half))],
        "×": [((-3, -3), (3, 3)), ((-3, 3), (3, -3))],
        "‖": [((-2.5, -half), (-2.5, half)), ((2.5, -half), (2.5, half))],
    }
    dot = [((-0.8, 0.0), (0.8, 0.0))]
    lines = [
        Stroke(tuple((x + RADIUS, y + RADIUS) for x, y in points), "ink", 1.3, 0) for points in strokes.get(sign, dot)
    ]
    return DrawnBox((circle, *lines), size, size)


def _draw_factor(sign: str) -> DrawnBox:
    """Draw a constant factor, on the wire whose values it multiplies."""
    size = measure_text(sign, SMALL) + PAD
    box = Box(0, 0, size, 2 * RADIUS, "paper", "wire", 3)
    return DrawnBox((box, Label(size / 2, RADIUS + 4.3, sign, SMALL, anchor="middle")), size, 2 * RADIUS)


def _draw_outside(name: str) -> DrawnBox:
    """Draw an input from outside the layer, such as an encoder's output or another layer's keys."""
    size = measure_text(name, SMALL) + 2 * PAD
    box = Box(0, 0, size, 22, "", "line", 11, dashed=True)
    return DrawnBox((box, Label(size / 2, 15.3, name, SMALL, color="muted", anchor="middle")), size, 22)


# ---------------------------------------------------------------- wires


def _goes_straight(spots: Mapping[int, NodePlace], source: int | str, end: int) -> bool:
    """Whether `source` and `end` are in one column with no node between them."""
    start, own = _spot(spots, source), spots[end]
    between = (each for each in spots.values() if each.column == own.column and start.row < each.row < own.row)
    return start.column == own.column and start.row < own.row and not any(between)


def _spot(spots: Mapping[int, NodePlace], source: int | str) -> NodePlace:
    return NodePlace(-1, 0) if isinstance(source, str) else spots[source]


def _list_lanes(nodes: Sequence[Junction], spots: Mapping[int, NodePlace]) -> dict[tuple[int | str, int], int]:
    """Assign lanes to the wires, as (source, end), that pass around nodes of the main column."""
    wires = [(source, node.number) for node in nodes for source in node.sources]
    around = [
        (source, end)
        for source, end in wires
        if spots[end].column == 0 and _spot(spots, source).column == 0 and not _goes_straight(spots, source, end)
    ]
    spans = [(float(_spot(spots, source).row), float(spots[end].row)) for source, end in around]
    return dict(zip(around, assign_lanes(spans), strict=True))


def _draw_wires(layout: _Layout) -> None:
    for number, node in layout.nodes.items():
        for source in node.sources:
            outside = isinstance(source, int) and not layout.nodes[source].sources
            layout.shapes.append(Stroke(_route(layout, source, number), arrow=True, dashed=outside))
    x = layout.center(layout.last)[0]
    layout.shapes.append(Stroke(((x, layout.top(layout.last)), (x, -12)), arrow=True))


def _route(layout: _Layout, source: int | str, end: int) -> tuple[tuple[float, float], ...]:
    """Return the points of a wire."""
    x, y = layout.center(end)
    below = y + layout.boxes[end].height / 2
    start = layout.centers[_spot(layout.spots, source).column]
    if (source, end) in layout.lanes:
        lane, leave = layout.left - LANE * (layout.lanes[source, end] + 1), layout.branch(source)
        return (start, leave), (lane, leave), (lane, y), (x - layout.half(end), y)
    if _goes_straight(layout.spots, source, end):
        return (x, layout.top(source)), (x, below)
    if isinstance(source, int) and (beside := layout.spots[source].column - layout.spots[end].column):
        level, side = layout.entry(end), 1 if beside > 0 else -1
        if layout.spots[source].row == layout.spots[end].row and not layout.blocked(source, end):
            return (start - side * layout.half(source), y), (x + side * layout.half(end), y)
        if layout.blocked(source, end) or layout.spots[source].row == layout.spots[end].row:
            begin = layout.top(source) + (layout.boxes[source].height if layout.top(source) < level else 0)
            return (start, begin), (start, level), (x, level), (x, below)
        if beside > 0:
            return (start, layout.top(source)), (start, y), (x + layout.half(end), y)
    leave = layout.branch(source)
    return (start, leave), (x, leave), (x, below)


# ---------------------------------------------------------------- the panel


def _frame(group: AlikeLayers, layout: _Layout, look: Styling) -> DrawnBox:
    """Draw the panel around a layer, with the layer's kinds as heading."""
    right = max(shape.extent.right for shape in layout.shapes)
    x = layout.centers[0]
    layout.shapes.append(Stroke(((x, layout.bottom + 14), (x, layout.bottom - 4)), "wire"))
    width = max(right, x + 60) + 2 * MARGIN
    heading, y = _draw_heading(group, width, look)
    body = shift_items(layout.shapes, MARGIN, y + 22)
    height = y + 22 + layout.bottom + 12
    panel = Box(0, 0, width, height, "panel", "line", 10)
    return DrawnBox((panel, *heading, *body), width, height)


def _draw_heading(group: AlikeLayers, width: float, look: Styling) -> tuple[list[Any], float]:
    shapes: list[Any] = []
    y, inner = 10.0, width - 2 * MARGIN
    for layer in group.layers:
        size = HEADING if len(group.layers) == 1 else SMALL
        y += 1.1 * size + 1
        count = f"× {layer.count}" + ("" if layer.stored == layer.count else f", {layer.stored} stored")
        count_width = measure_text(count, size, True)
        name = cut_text(layer.kind, inner - count_width - 14, size, True)
        shapes += [
            Box(MARGIN, y - 0.75 * size + 0.5, 4, 0.78 * size, layer.color + "-line", "", 2),
            Label(MARGIN + 10, y, name, size, True, "lit" if (layer.kind, "kind") in look.lit else "ink"),
            Label(width - MARGIN, y, count, size, True, "ink", "end"),
        ]
        if layer.count > 1 or len(group.layers) > 1:
            begin = MARGIN + 10 + measure_text(name, size, True) + 8
            room = width - MARGIN - count_width - 8 - begin
            places = f"layers {layer.places}" if layer.count > 1 else f"layer {layer.places}"
            if measure_text(places, SMALL) <= room:
                shapes.append(Label(begin, y, places, SMALL, color="muted"))
    return shapes, y + PAD - 4
