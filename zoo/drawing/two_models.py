"""Draw two models side by side, with differences highlighted and costs compared below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from zoo.drawing.boxes import BETWEEN, SMALL, DrawnBox, Styling, color_by_kind
from zoo.drawing.contents import Element, ModelPlan, TowerPlan
from zoo.drawing.cost_look import sum_shares
from zoo.drawing.grouping import AlikeLayers, group_layers
from zoo.drawing.lettering import cut_text, wrap_text
from zoo.drawing.model_figure import EDGE, describe_model
from zoo.drawing.panels import draw_panel
from zoo.drawing.scene import Label, Scene, Shape, Stroke, find_extent, shift_items
from zoo.drawing.strip import draw_tower_strip
from zoo.drawing.text_figure import Line
from zoo.units import format_change, format_count, format_si

BOX = 258.0
"""Width of boxes in pixels. Two figures side by side are then 700 wide."""

MIDDLE = 28.0
TITLE = 17.0

Elements = Mapping[str, Element]


class Difference(NamedTuple):
    """A difference of an element from the other model's: tower, kind of layer, element, and the part that differs.
    `what` is "" for the whole element, "title", or the text of a fact."""

    where: str
    kind: str
    element: str
    what: str
    title: str


def find_differences(plan: ModelPlan, other: ModelPlan) -> list[Difference]:
    """Find the elements of a model that the other model lacks or has in another form."""
    found: list[Difference] = []
    theirs = {tower.where: tower for tower in other.towers}
    for tower in plan.towers:
        counterpart = theirs.get(tower.where)
        pairs: list[tuple[str, Elements, Elements]] = [
            ("", _name_ends(tower), _name_ends(counterpart) if counterpart else {})
        ]
        groups = group_layers(counterpart.layers) if counterpart else []
        for at, group in enumerate(group_layers(tower.layers)):
            matching = _match(group, groups, at)
            pairs.append((group.layers[0].kind, group.elements, matching.elements if matching else {}))
        found += [
            Difference(tower.where, kind, name, what, element.title)
            for kind, own, others in pairs
            for name, element in own.items()
            for what in compare_elements(element, others.get(name))
        ]
    return found


def compare_elements(element: Element, other: Element | None) -> list[str]:
    """List an element's differences: "" and "title" for another or no component, and the facts that `other` lacks."""
    if other is None:
        return ["", "title"]
    found = [] if element.title == other.title else ["", "title"]
    theirs = set(_list_facts(other))
    return found + [fact for label, fact in _list_facts(element) if (label, fact) not in theirs]


def _list_facts(element: Element) -> list[tuple[str, str]]:
    rows = (*element.rows, ("", element.kept))
    return [(label, fact) for label, text in rows for fact in text.split(BETWEEN) if fact]


def _name_ends(tower: TowerPlan) -> dict[str, Element]:
    return {each.name: each for each in tower.ends}


def _match(group: AlikeLayers, others: Sequence[AlikeLayers], at: int) -> AlikeLayers | None:
    """Find the other model's counterpart of a group: by a kind of the same name, or else by index."""
    kinds = {layer.kind for layer in group.layers}
    named = (each for each in others if kinds & {layer.kind for layer in each.layers})
    return next(named, others[at] if at < len(others) else None)


def draw_beside(plan: ModelPlan, other: ModelPlan) -> Scene:
    """Draw two models side by side, with their costs below."""
    left, right = _draw_half(plan, other), _draw_half(other, plan)
    width = left.width + MIDDLE + right.width + 2 * EDGE
    shapes = [*shift_items(left.shapes, EDGE, EDGE), *shift_items(right.shapes, EDGE + left.width + MIDDLE, EDGE)]
    y = EDGE + max(left.height, right.height) + 26
    middle = EDGE + left.width + MIDDLE / 2
    shapes.append(Stroke(((middle, EDGE), (middle, y - 20)), "grid", 1))
    table = _draw_costs(plan, other, width - 2 * EDGE)
    shapes += shift_items(table, EDGE, y)
    title = f"{plan.title} beside {other.title}"
    height = y + find_extent(table).bottom + EDGE
    return Scene(width, height, tuple(shapes), title, f"{describe_model(plan)} {describe_model(other)}")


def _draw_half(plan: ModelPlan, other: ModelPlan) -> DrawnBox:
    """Draw one of two models in a column: name, pattern of layers, panels of layers."""
    differences = find_differences(plan, other)
    patterns = {tower.where: tower.pattern for tower in other.towers}
    bodies: list[DrawnBox] = []
    for tower in plan.towers:
        kinds = {layer.kind for each in other.towers if each.where == tower.where for layer in each.layers}
        for group in group_layers(tower.layers):
            own = [each for each in differences if (each.where, each.kind) == (tower.where, group.layers[0].kind)]
            lit = {(each.element, each.what) for each in own}
            lit |= {(layer.kind, "kind") for layer in group.layers if layer.kind not in kinds}
            bodies.append(draw_panel(group, BOX, Styling(color_by_kind, lit=frozenset(lit))))
    width = max(each.width for each in bodies)
    shapes: list[Shape] = []
    y = 14.0
    for line in wrap_text(plan.title, width, TITLE, True)[:3]:
        shapes.append(Label(0, y, line, TITLE, True))
        y += 21
    for tower in plan.towers:
        drawn = draw_tower_strip(tower, width, titled=len(plan.towers) > 1, keyed=False)
        shapes += shift_items(drawn.shapes, 0, y)
        y += drawn.height
        same = patterns.get(tower.where) == tower.pattern
        shapes.append(Label(0, y + 6, f"{len(tower.pattern)} layers", SMALL, color="muted" if same else "lit"))
        y += 20
    for element in [each for tower in plan.towers for each in tower.ends]:
        for what in [each.what for each in differences if not each.kind and each.element == element.name and each.what]:
            said = element.title if what == "title" else f"{element.title}: {what}"
            shapes.append(Label(0, y + 10, cut_text(said, width, SMALL), SMALL, color="lit"))
            y += 18
    y += 6
    for drawn in bodies:
        shapes += shift_items(drawn.shapes, 0, y)
        y += drawn.height + 14
    return DrawnBox(tuple(shapes), width, y - 14)


# ---------------------------------------------------------------- what it costs


def list_costs(plan: ModelPlan, other: ModelPlan) -> list[tuple[str, str, str, str]]:
    """List the costs of two models, each as (name, first value, second value, change)."""
    first, second = sum_shares(plan), sum_shares(other)
    tokens = plan.figures["kv_cache"]["tokens"]
    rows = [
        ("parameters", first.params, second.params, format_count),
        ("active parameters", first.active, second.active, format_count),
        (f"FLOPs per token, mean over {tokens:,}", first.flops, second.flops, format_si),
        (f"cache of {tokens:,} tokens", first.cache, second.cache, partial(format_si, unit="B")),
    ]
    return [(name, say(a), say(b), say_change(a, b)) for name, a, b, say in rows if a or b]


def say_change(before: float, after: float) -> str:
    """Format a change from `before` to `after`: `−12.5 %`, `×25.0`, `=`."""
    if before == after:
        return "="
    return format_change(after / before - 1).replace("-", "−") if before else "new"


def _draw_costs(plan: ModelPlan, other: ModelPlan, width: float) -> list[Shape]:
    columns = (0.56 * width, 0.78 * width, width)
    shapes: list[Shape] = []
    y = 12.0
    named = [wrap_text(each.title, 0.22 * width - 12, SMALL)[:3] for each in (plan, other)]
    for x, lines in zip(columns, named, strict=False):
        shapes += [Label(x, y + 15 * at, line, SMALL, color="muted", anchor="end") for at, line in enumerate(lines)]
    y += 15 * max(map(len, named)) + 6
    for name, *values in list_costs(plan, other):
        shapes.append(Label(0, y, name, 13))
        changed = values[2] != "="
        for x, value in zip(columns, values, strict=True):
            color = "lit" if changed and x == width else "ink" if changed else "muted"
            shapes.append(Label(x, y, value, 13, x == width and changed, color, "end"))
        y += 7
        shapes.append(Stroke(((0, y), (width, y)), "grid", 1))
        y += 17
    return shapes


def list_differences(plan: ModelPlan, other: ModelPlan) -> list[Line]:
    """List the differences of two models for a terminal: what each has and the other lacks, then the costs."""
    lines: list[Line] = []
    for one, two in ((plan, other), (other, plan)):
        lines.append([(one.title, "title")])
        for each in find_differences(one, two):
            if each.what:  # a whole that differs is told by its title
                place = " ".join(filter(None, (each.where, each.kind, each.element)))
                lines.append([(f"  {place}  ", "muted"), (each.title if each.what == "title" else each.what, "")])
        lines.append([])
    size = 2 + max(10, len(plan.title), len(other.title))
    lines.append([(f"{'':36}{plan.title:>{size}}{other.title:>{size}}", "muted")])
    for name, first, second, change in list_costs(plan, other):
        lines.append([(f"{name:36}", "muted"), (f"{first:>{size}}{second:>{size}}", ""), (f"{change:>12}", "title")])
    return lines
