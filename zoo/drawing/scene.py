"""Define a scene: boxes, labels and strokes with their geometry, which writers turn into SVG, PNG or PDF.

Units are CSS pixels, x to the right and y downwards. Colours are names in the palette (`zoo.drawing.palette`): a scene
can be drawn in light and in dark mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from zoo.drawing.lettering import ASCENT, DESCENT, measure_text


class Extent(NamedTuple):
    """A rectangle: left, top, right and bottom."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Box:
    """A rectangle with rounded corners. `fill` and `line` are colours ("" for none). `tip` is the tooltip. `name`
    identifies the content for scripts on a page (`attention`, say)."""

    x: float
    y: float
    width: float
    height: float
    fill: str = "paper"
    line: str = "line"
    radius: float = 5
    thickness: float = 1
    dashed: bool = False
    tip: str = ""
    name: str = ""

    def shift(self, dx: float, dy: float) -> Box:
        return replace(self, x=self.x + dx, y=self.y + dy)

    @property
    def extent(self) -> Extent:
        return Extent(self.x, self.y, self.x + self.width, self.y + self.height)


@dataclass(frozen=True)
class Label:
    """A line of text. `anchor` says whether x is its start, middle or end; y is its baseline."""

    x: float
    y: float
    text: str
    size: float = 12
    bold: bool = False
    color: str = "ink"
    anchor: str = "start"
    upright: bool = True
    """False for text that is turned by 90° and reads upwards."""

    def shift(self, dx: float, dy: float) -> Label:
        return replace(self, x=self.x + dx, y=self.y + dy)

    @property
    def width(self) -> float:
        return measure_text(self.text, self.size, self.bold)

    @property
    def extent(self) -> Extent:
        before = {"start": 0.0, "middle": self.width / 2, "end": self.width}[self.anchor]
        up, down = ASCENT * self.size, DESCENT * self.size
        if self.upright:
            return Extent(self.x - before, self.y - up, self.x - before + self.width, self.y + down)
        return Extent(self.x - up, self.y + before - self.width, self.x + down, self.y + before)


@dataclass(frozen=True)
class Outline:
    """A shape through `points`."""

    points: tuple[tuple[float, float], ...]

    def shift(self, dx: float, dy: float) -> Self:
        return replace(self, points=tuple((x + dx, y + dy) for x, y in self.points))

    @property
    def extent(self) -> Extent:
        xs, ys = zip(*self.points, strict=True)
        return Extent(min(xs), min(ys), max(xs), max(ys))


@dataclass(frozen=True)
class Stroke(Outline):
    """A line through `points`, with corners of `radius`; with `arrow` it ends in an arrow head."""

    color: str = "wire"
    thickness: float = 1.3
    radius: float = 6
    arrow: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Polygon(Outline):
    """A closed area through `points`."""

    fill: str
    line: str = ""


Shape = Box | Label | Stroke | Polygon


@dataclass(frozen=True)
class Scene:
    """A picture of `width` × `height`. `title` and `description` are for screen readers."""

    width: float
    height: float
    items: tuple[Shape, ...]
    title: str
    description: str = ""


def shift_items(items: Iterable[Shape], dx: float, dy: float) -> list[Shape]:
    """Move items by (dx, dy)."""
    return [item.shift(dx, dy) for item in items]


def find_extent(items: Sequence[Shape]) -> Extent:
    """Return the smallest rectangle that contains all items."""
    lefts, tops, rights, bottoms = zip(*(item.extent for item in items), strict=True)
    return Extent(min(lefts), min(tops), max(rights), max(bottoms))


def frame_items(items: Sequence[Shape], title: str, description: str = "", margin: float = 20) -> Scene:
    """Make a scene that contains all items, with a margin around them."""
    found = find_extent(items)
    moved = shift_items(items, margin - found.left, margin - found.top)
    width, height = found.right - found.left + 2 * margin, found.bottom - found.top + 2 * margin
    return Scene(width, height, tuple(moved), title, description)


def round_corners(points: Sequence[tuple[float, float]], radius: float) -> list[tuple[str, tuple[float, ...]]]:
    """Turn a line into path commands: ("M", point), ("L", point), and ("Q", corner and end) at rounded corners."""
    steps: list[tuple[str, tuple[float, ...]]] = [("M", points[0])]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _towards(corner, before, radius), _towards(corner, after, radius)
        steps += [("L", start), ("Q", (*corner, *end))] if radius else [("L", corner)]
    return [*steps, ("L", points[-1])]


def _towards(start: tuple[float, float], end: tuple[float, float], length: float) -> tuple[float, float]:
    """Return the point at `length` from start on the way to end, at most half-way."""
    across, down = end[0] - start[0], end[1] - start[1]
    whole = (across**2 + down**2) ** 0.5
    part = min(length, whole / 2) / whole if whole else 0.0
    return start[0] + part * across, start[1] + part * down


def arrow_head(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Make the triangle of an arrow head, 6 pixels long, at the end of a line."""
    (x, y), before = points[-1], points[-2]
    across, down = x - before[0], y - before[1]
    whole = (across**2 + down**2) ** 0.5 or 1.0
    across, down = across / whole * 6, down / whole * 6
    return (
        (x, y),
        (x - across - 0.5 * down, y - down + 0.5 * across),
        (x - across + 0.5 * down, y - down - 0.5 * across),
    )
