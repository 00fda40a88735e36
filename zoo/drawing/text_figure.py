"""Draw a model's figure in characters: for terminals, .txt files and screen readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from zoo.drawing.boxes import PLAIN, Styling
from zoo.drawing.contents import Element, ModelPlan, TowerPlan
from zoo.drawing.grouping import AlikeLayers, group_layers
from zoo.drawing.panels import ELSEWHERE, place_group
from zoo.drawing.placement import NodePlace
from zoo.drawing.strip import list_colors
from zoo.drawing.wiring import STREAM, Junction

Line = list[tuple[str, str]]
"""A line of text: pieces, each with its palette colour."""

STYLES = {
    "attention": "bold blue",
    "recurrent": "bold green",
    "ffn": "bold yellow",
    "experts": "bold red",
    "table": "bold magenta",
    "norm": "",
    "title": "bold",
    "muted": "dim",
}
"""Styles in which the library rich shows the palette's colours."""

SIGNS = {"+": "⊕", "×": "⊗", "‖": "⊞"}


def write_text(lines: list[Line]) -> str:
    """Join lines to plain text, without colours."""
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def draw_text(plan: ModelPlan, look: Styling = PLAIN) -> list[Line]:
    """Draw a model as text, from the output at the top to the input. `look` adds its notes to the titles of boxes."""
    lines = _draw_header(plan)
    for tower in plan.towers:
        lines += [[], *_draw_tower(tower, look, titled=len(plan.towers) > 1)]
    return lines


def draw_text_strip(plan: ModelPlan) -> list[Line]:
    """Draw the pattern of layers as text, a column for each layer from left to right. ▒ marks a mixer with a window."""
    lines = _draw_header(plan)
    for tower in plan.towers:
        colors = {layer.kind: list_colors(layer) for layer in tower.layers}
        lines.append([(tower.title if len(plan.towers) > 1 else "", "title")])
        for row in range(max(map(len, colors.values()))):
            columns = [colors[kind][row] if row < len(colors[kind]) else "" for kind in tower.pattern]
            lines.append([_draw_cell(each) for each in columns])
        for layer in tower.layers:
            parts = " + ".join(each.title for each in layer.elements.values() if each.color not in ("norm", "other"))
            lines.append([(layer.kind, layer.color), (f" × {layer.count}  {parts}", "")])
    return lines


def _draw_cell(color: str) -> tuple[str, str]:
    return "█" if color.endswith("-line") else "▒" if color else " ", color.removesuffix("-line")


def _draw_header(plan: ModelPlan) -> list[Line]:
    figures = "   ".join(f"{value} {name}" for value, name in plan.list_tiles())
    return [[(plan.title, "title")], [(figures, "muted")]]


def _draw_tower(tower: TowerPlan, look: Styling, *, titled: bool) -> Iterator[Line]:
    if titled:
        yield [(tower.title, "title")]
    for note in tower.notes:
        yield [(note, "muted")]
    for element in reversed(tower.after):
        yield _name(element, look)
        yield [("│", "muted")]
    runs = " → ".join(map(str, tower.folds))
    yield [(f"layers, first to last: {runs}", "title")]
    for group in group_layers(tower.layers):
        yield from _draw_group(group, look)
    for element in tower.beside:
        yield [("◂ ", "muted"), *_name(element, look)]
    for element in reversed(tower.before):
        yield [("│", "muted")]
        yield _name(element, look)


def _name(element: Element, look: Styling) -> Line:
    texts = " · ".join(text for _, text in element.rows)
    return [(element.title, element.color), (_note(element, look), "title"), (f"  {texts}" if texts else "", "")]


def _note(element: Element, look: Styling) -> str:
    note = look.note(element)
    return f"  {note}" if note else ""


def _draw_group(group: AlikeLayers, look: Styling) -> Iterator[Line]:
    for at, layer in enumerate(group.layers):
        places = f"layers {layer.places}" if layer.count > 1 else f"layer {layer.places}"
        yield [(f"{'├' if at else '┌'} {layer.kind}", layer.color), (f" × {layer.count}  {places}", "muted")]
    nodes, spots, lanes = place_group(group)
    rows = {number: spot.row for number, spot in spots.items()}
    count = 1 + max(lanes.values(), default=-1)
    for node in sorted(group.junctions, key=lambda each: (-rows[each.number], spots[each.number].column)):
        if arriving := [lane for (source, _), lane in lanes.items() if source == node.number]:
            yield [(f"│ {_draw_lanes(lanes, rows, rows[node.number] + 0.5, count, arriving, '╰')}┤", "muted")]
        ending = [lane for (_, end), lane in lanes.items() if end == node.number]
        prefix = f"│ {_draw_lanes(lanes, rows, float(rows[node.number]), count, ending, '╭')}"
        yield from _draw_node(node, nodes, spots[node.number], group.elements, prefix, look)
    if leaving := [lane for (source, _), lane in lanes.items() if source == STREAM]:
        yield [(f"│ {_draw_lanes(lanes, rows, -0.5, count, leaving, '╰')}┤", "muted")]
    yield [("└", "muted")]


def _draw_lanes(
    lanes: Mapping[tuple[int | str, int], int],
    rows: Mapping[int, int],
    level: float,
    count: int,
    own: list[int],
    corner: str,
) -> str:
    """Draw the lanes at the left of a text line: `│` for lanes that pass height `level`, `corner` for lanes in
    `own`."""
    passing = {
        lane
        for (source, end), lane in lanes.items()
        if (-1 if isinstance(source, str) else rows[source]) + 0.5 < level < rows[end]
    }
    drawn, reached = "", False
    for lane in reversed(range(count)):
        mark = corner if lane in own else "│" if lane in passing else "─" if reached else " "
        reached = reached or lane in own
        drawn += mark + ("─" if reached else " ")
    return drawn


def _draw_node(
    node: Junction, nodes: list[Junction], spot: NodePlace, elements: Mapping[str, Element], prefix: str, look: Styling
) -> Iterator[Line]:
    beside = "∥ " if spot.column else ""
    outside = [nodes[each].sign for each in node.sources if isinstance(each, int) and not nodes[each].sources]
    read = "".join(f"  ◂ {ELSEWHERE.get(name, name)}" for name in outside)
    element = elements.get(node.part)
    if element is None:
        yield [(prefix, "muted"), (f"{beside}{SIGNS.get(node.sign, node.part or node.sign)}{read}", "")]
        return
    yield [
        (prefix, "muted"),
        (beside + element.title, element.color),
        (_note(element, look), "title"),
        (read, "muted"),
    ]
    below = "│ " + prefix[2:].translate(str.maketrans("╭─╰", "│  "))
    rest = [*([("", element.about)] if element.about else []), *element.rows]
    for label, text in [*rest, *([("", element.kept)] if element.kept else [])]:
        yield [(below, "muted"), (f"  {label} " if label else "  ", "muted"), (text, "")]
