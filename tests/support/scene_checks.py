"""Find what a reader would see wrong in a scene: text that is cut or covered, boxes that overlap."""

from __future__ import annotations

from itertools import combinations

from zoo.drawing.palette import COLOURS
from zoo.drawing.scene import Box, Extent, Label, Scene, Stroke

SLACK = 0.51  # half a pixel: borders of neighbours may coincide


def find_faults(scene: Scene) -> list[str]:
    """List faults: boxes that overlap without one holding the other, texts that leave the canvas or their box or touch
    another text, strokes through a text, and colours that the palette lacks."""
    boxes = [(shape.extent, shape) for shape in scene.items if isinstance(shape, Box)]
    labels = [(shape.extent, shape) for shape in scene.items if isinstance(shape, Label) and shape.text]
    canvas = Extent(0, 0, scene.width, scene.height)
    faults = [f"beyond the canvas: {shape}" for shape in scene.items if not holds(canvas, shape.extent)]
    for shape in scene.items:
        colors = {getattr(shape, name, "") for name in ("fill", "line", "color")} - {""}
        faults += [f"no colour of the palette: {shape}"] if colors - COLOURS.keys() else []
    for (one, first), (two, second) in combinations(boxes, 2):
        if overlap(one, two) and not holds(one, two) and not holds(two, one):
            faults.append(f"boxes overlap: {first} {second}")
    for extent, label in labels:
        faults += [f"text over a border: {label} {box}" for area, box in boxes if crosses(area, extent, box)]
    for (one, first), (two, second) in combinations(labels, 2):
        if overlap(one, two):
            faults.append(f"texts overlap: {first} {second}")
    for stroke in (shape for shape in scene.items if isinstance(shape, Stroke)):
        for start, end in zip(stroke.points, stroke.points[1:], strict=False):
            piece = Extent(min(start[0], end[0]), min(start[1], end[1]), max(start[0], end[0]), max(start[1], end[1]))
            faults += [f"line through text: {stroke} {label}" for extent, label in labels if touches(piece, extent)]
    return faults


def smallest_text(scene: Scene, width: float = 600) -> float:
    """Size of the smallest text of a scene that is shown `width` pixels wide (or as drawn, if that is less)."""
    sizes = [shape.size for shape in scene.items if isinstance(shape, Label)]
    return min(sizes) * min(1.0, width / scene.width)


def holds(outer: Extent, inner: Extent) -> bool:
    return (
        outer.left <= inner.left + SLACK
        and outer.top <= inner.top + SLACK
        and outer.right >= inner.right - SLACK
        and outer.bottom >= inner.bottom - SLACK
    )


def overlap(one: Extent, two: Extent) -> bool:
    return (
        one.left < two.right - SLACK
        and two.left < one.right - SLACK
        and one.top < two.bottom - SLACK
        and two.top < one.bottom - SLACK
    )


def crosses(area: Extent, text: Extent, box: Box) -> bool:
    """Whether a text is partly inside a box."""
    return bool(box.fill or box.line) and overlap(area, text) and not holds(area, text)


def touches(piece: Extent, text: Extent) -> bool:
    """Whether an upright or level piece of a line runs through a text."""
    return (
        piece.left <= text.right - 1
        and piece.right >= text.left + 1
        and piece.top <= text.bottom - 1
        and piece.bottom >= text.top + 1
    )
