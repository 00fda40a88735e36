"""Draw the choices of an axis as small figures: their fields, growth of cost and, for attention, the mask."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import Any

from zoo.analysis.axes import find_axis, find_component, find_source, grow, load_small
from zoo.analysis.uses import find_users, is_for_encoders
from zoo.costs.setup import Setup
from zoo.drawing.boxes import SMALL, DrawnBox, draw_box
from zoo.drawing.contents import Element, make_element, plan_model
from zoo.drawing.facts import find_name
from zoo.drawing.grouping import group_layers
from zoo.drawing.lettering import cut_text, wrap_text
from zoo.drawing.masks import MaskGrid, find_convolved, find_grid, list_hidden, name_seen
from zoo.drawing.panels import draw_panel
from zoo.drawing.scene import Box, Label, Scene, Shape, shift_items
from zoo.drawing.shares import Share
from zoo.grammar.vocabulary import read_choices
from zoo.model.attention.base import Attention
from zoo.paths import conf_dir

WIDTH, EDGE, GUTTER = 800.0, 26.0, 18.0
CELL = 6.0


@dataclass(frozen=True)
class Choice:
    """A choice of an axis: its name, its component as an Element, and lines about it. A choice that only encoders use
    is not `causal`, even if a decoder would accept it."""

    name: str
    element: Element
    lines: tuple[str, ...]
    tower: Any
    component: Any
    causal: bool

    @property
    def said(self) -> str:
        return " · ".join([self.element.about or self.element.title, *self.lines])


def list_choices(axis: str) -> list[Choice]:
    """List the choices of an axis. Raises ConfigError for an unknown axis."""
    find_axis(axis)
    return [_make_choice(axis, file.stem) for file in sorted((conf_dir() / axis).glob("*.yaml"))]


def _make_choice(axis: str, name: str) -> Choice:
    *_, tower = load_small(axis, name)
    component = find_component(tower, axis)
    comment, causal = read_choices(axis)[name].comment, tower.causal and not is_for_encoders(axis, name)
    lines = [find_source(component, comment)]
    if isinstance(component, Attention):
        growth = grow(component, causal)
        lines.append(f"time {growth['time']}" + (f", cache {growth['cache']}" if causal else ""))
    element = make_element(axis, component, tower.d_model, Share())
    element = replace(element, about=find_name(comment) or element.about)  # a choice may be a case of its component
    return Choice(name, element, tuple(each for each in lines if each), tower, component, causal)


def draw_axis(axis: str, choices: list[Choice]) -> Scene:
    """Draw the choices of an axis in a table of small figures."""
    columns = 2 if axis == "block" else 3
    size = (WIDTH - 2 * EDGE - GUTTER * (columns - 1)) / columns
    shapes: list[Shape] = [Label(EDGE, EDGE + 18, f"{axis}: {len(choices)} choices", 22, True)]
    ends = [EDGE + 44.0] * columns  # each choice goes where there is room first
    for each in choices:
        drawn = _draw_choice(axis, each, size)
        column = ends.index(min(ends))
        x, y = EDGE + column * (size + GUTTER), ends[column]
        shapes.append(Box(x, y, size, drawn.height, "panel", "line", 10, name=each.name))
        shapes += shift_items(drawn.shapes, x, y)
        ends[column] = y + drawn.height + GUTTER
    said = "; ".join(f"{each.name}: {each.said}" for each in choices)
    return Scene(WIDTH, max(ends) + EDGE - GUTTER, tuple(shapes), f"Choices of {axis}", said)


def _draw_choice(axis: str, choice: Choice, width: float) -> DrawnBox:
    """Draw one choice: name, description and figure."""
    inner, y = width - 28, 26.0
    shapes: list[Shape] = [Label(14, y, cut_text(choice.name, inner, 15, True), 15, True)]
    about = choice.element.about or choice.element.title
    for line in wrap_text(about, inner, SMALL)[:2]:
        y += 17
        shapes.append(Label(14, y, line, SMALL))
    for line in (part for each in choice.lines for part in wrap_text(each, inner, SMALL)[:2]):
        y += 16
        shapes.append(Label(14, y, line, SMALL, color="muted"))
    y += 14
    figure = _draw_figure(axis, choice, inner)
    if figure is not None:
        shapes += shift_items(figure.shapes, 14, y)
        y += figure.height + 14
    return DrawnBox(tuple(shapes), width, y)


def _draw_figure(axis: str, choice: Choice, width: float) -> DrawnBox | None:
    if axis == "block":
        return draw_block(choice, width)
    if isinstance(choice.component, Attention):
        return _draw_mask(find_grid(choice.component, choice.causal), choice, width)
    if axis == "norm":
        return _draw_formula(write_formula(choice.component), width)
    return draw_box(choice.element, width) if choice.element.title else None


def write_formula(norm: Any) -> str:
    """Return the formula at the start of a norm's docstring, without the weight or bias that this norm lacks."""
    said = " ".join((inspect.getdoc(type(norm)) or "").split())
    formula = re.split(r" in place of| \([A-Z]|: ", said)[0]
    if not getattr(norm, "weight", True):
        formula = formula.replace(" · weight", "")
    if not getattr(norm, "bias", True):
        formula = formula.replace(" + bias", "")
    return formula.replace("weight", "(1 + weight)") if getattr(norm, "unit_offset", False) else formula


def _draw_formula(formula: str, width: float) -> DrawnBox:
    """Draw a norm's formula in a rounded box, wrapped to `width`."""
    lines = wrap_text(formula, width - 24, SMALL)
    height = 17.0 * len(lines) + 8
    pill = Box(0, 0, width, height, "norm", "norm-line", 12)
    texts = [Label(width / 2, 17 * at + 16.5, each, SMALL, anchor="middle") for at, each in enumerate(lines)]
    return DrawnBox((pill, *texts), width, height)


def draw_block(choice: Choice, width: float) -> DrawnBox:
    """Draw how the parts of a choice's layer are connected, with the widest boxes that fit `width`."""
    plan = plan_model(choice.tower, choice.name, Setup(context=64))
    group = group_layers(plan.towers[0].layers)[0]
    drawn = [draw_panel(group, size) for size in (240, 200, 170, 140, 120, 96)]
    return next((each for each in drawn if each.width <= width), drawn[-1])


def _draw_mask(grid: MaskGrid, choice: Choice, width: float) -> DrawnBox:
    """Draw a mask's grid: queries downwards, keys to the right. Pooled keys, which each stand for several tokens, get a
    second grid. So does a recurrent mixer that runs parallel to softmax attention."""
    color = choice.element.color
    shapes = _draw_cells(grid.seen, f"{color}-line")
    side = len(grid.seen) * CELL
    recurrent = getattr(choice.component, "recurrent", None)
    held = ((), "", "") if recurrent is None else (find_grid(recurrent, True).seen, "recurrent-line", "through a state")
    cells, fill, said = (grid.pooled, "table-line", "pooled keys") if grid.pooled else held
    if cells:
        shapes += shift_items(_draw_cells(cells, fill), width - side - 2, 0)
        shapes.append(Label(width - side - 2, side + 16, said, SMALL, color="muted"))
    lines = ["keys"] if cells else wrap_text(_say_mask(grid, choice), width, SMALL)
    for at, line in enumerate(lines):
        shapes.append(Label(0, side + 16 * (at + 1), line, SMALL, color="muted"))
    return DrawnBox(tuple(shapes), width, side + 4 + 16 * len(lines))


def _say_mask(grid: MaskGrid, choice: Choice) -> str:
    """Describe the keys in a grid, and the keys that the grid omits. Bidirectional attention is given an example model
    family."""
    width = find_convolved(choice.component)
    said = [name_seen(choice.component)]
    said += [f"of the last {width} tokens"] if width else []
    if not choice.causal:
        users = find_users("attention", choice.name)[1][:1]
        said.append("bidirectional" + "".join(f", as in {each}" for each in users))
    said += [f"one token in {grid.step} drawn"] if grid.step > 1 else []
    said += ["an indexer chooses among these"] if choice.component.chooser is not None else []
    hidden = " and ".join(list_hidden(choice.component))
    return ", ".join([*said, *([f"{hidden} not drawn"] if hidden else [])])


def _draw_cells(seen: tuple[tuple[bool, ...], ...], fill: str) -> list[Shape]:
    """Draw a cell for each (query, key) pair, filled if the query sees the key."""
    width, height = len(seen[0]) * CELL, len(seen) * CELL
    shapes: list[Shape] = [Box(-2, -2, width + 3, height + 3, "paper", "line", 3)]
    for row, keys in enumerate(seen):
        for column, shown in enumerate(keys):
            shapes.append(Box(column * CELL, row * CELL, CELL - 1, CELL - 1, fill if shown else "grid", "", 1))
    return shapes
