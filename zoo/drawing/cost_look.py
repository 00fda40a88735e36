"""Colour a figure by the cost of its boxes, and draw all of them as a bar of proportional areas."""

from __future__ import annotations

from zoo.drawing.boxes import SMALL, Styling
from zoo.drawing.contents import Element, ModelPlan
from zoo.drawing.lettering import measure_text
from zoo.drawing.scene import Box, Label, Shape
from zoo.drawing.shares import Share
from zoo.errors import ConfigError
from zoo.units import format_count, format_share, format_si

LEVELS = (0.01, 0.05, 0.2, 0.5)
"""Fractions of the model's cost at which a box's colour changes."""

COSTS = {"params": "parameters", "flops": "FLOPs per token", "cache": "cache per sequence"}
"""Costs by which boxes can be coloured."""


def sum_shares(plan: ModelPlan) -> Share:
    """Sum the costs of all boxes of a model."""
    return sum((each.share for _, _, each in list_elements(plan)), Share())


def list_elements(plan: ModelPlan) -> list[tuple[str, str, Element]]:
    """List a model's elements in order, each with its tower and its kind of layer ("" outside the layers)."""
    found: list[tuple[str, str, Element]] = []
    for tower in plan.towers:
        found += [(tower.where, "", each) for each in (*tower.before, *tower.beside)]
        found += [(tower.where, layer.kind, each) for layer in tower.layers for each in layer.elements.values()]
        found += [(tower.where, "", each) for each in tower.after]
    return found


def make_cost_look(plan: ModelPlan, by: str) -> Styling:
    """Make a styling that colours boxes by their share of the parameters, FLOPs or cache. Raises ConfigError if the
    model's total of that cost is 0."""
    whole = getattr(sum_shares(plan), by)
    if not whole:
        raise ConfigError(f"by: {plan.title} has no {by} (--by params or --by flops)")

    def fill(element: Element) -> tuple[str, str, str]:
        share = getattr(element.share, by) / whole
        level = sum(share >= each for each in LEVELS)
        return f"heat-{level}", "line" if level < 3 else f"heat-{level}", "ink" if level < 3 else f"on-heat-{level}"

    def note(element: Element) -> str:
        share = getattr(element.share, by) / whole
        return format_share(share, 1) if share >= 0.0005 else ""

    return Styling(fill, note)


def draw_areas(plan: ModelPlan, by: str, width: float, look: Styling) -> list[Shape]:
    """Draw the model as a bar. An element's width is its share of the cost; its name is shown if there is room."""
    whole = getattr(sum_shares(plan), by)
    said = format_count(whole) if by == "params" else format_si(whole, "B" if by == "cache" else "")
    context = plan.figures["kv_cache"]["tokens"]
    where = "" if by == "params" else f", mean over {context:,} tokens" if by == "flops" else f" of {context:,} tokens"
    shapes: list[Shape] = [Label(0, 11, f"{said} {COSTS[by]}{where}", SMALL, color="muted")]
    x = 0.0
    for where, kind, element in list_elements(plan):
        size = width * getattr(element.share, by) / whole
        if size < 0.5:
            x += size
            continue
        fill, _, ink = look.fill(element)
        title = f"cross {element.title}" if element.about == "cross-attention" else element.title
        names = [
            " ".join(filter(None, each)) for each in ((where, kind, title), (where, title), (kind, title), (title,))
        ]
        shapes.append(Box(x, 20, size, 30, fill, "paper", 3, tip=f"{names[0]}: {format_share(size, width)}"))
        named = next((each for each in names if measure_text(each, SMALL) + 6 <= size), "")
        shapes += [Label(x + size / 2, 39, named, SMALL, color=ink, anchor="middle")] if named else []
        x += size
    return shapes
