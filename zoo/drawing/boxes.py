"""Draw an Element (a part of a model) as a box: title, rows of text, experts, and cached values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from zoo.drawing.contents import Element, ExpertCounts
from zoo.drawing.lettering import cut_text, measure_text, wrap_text, wrap_words
from zoo.drawing.scene import Box, Label, Shape

SMALL, NORMAL, HEADING = 12.0, 13.0, 15.0
"""Font sizes in pixels: of rows, of titles of boxes, of titles of panels."""

LINE = 15.5
"""Distance between the baselines of rows, in pixels."""

BETWEEN = " · "
"""Separator of the facts in a row."""

PAD = 9.0
MOST_LINES = 6
"""Maximum number of lines of one row."""

THIN = 24.0
"""Height of a box of one line, in pixels."""

CELL, GAP = 9.0, 2.0
MOST_CELLS = 64
"""Maximum number of cells for experts. With more experts, each cell stands for several."""


@dataclass(frozen=True)
class Styling:
    """How boxes are coloured and marked. `fill` returns an element's palette colours (fill, border, text), `note` a
    text for the right of its title. `lit` are the (element name, text) pairs to highlight because they differ from
    another model's."""

    fill: Callable[[Element], tuple[str, str, str]]
    note: Callable[[Element], str] = lambda element: ""
    lit: frozenset[tuple[str, str]] = frozenset()


def color_by_kind(element: Element) -> tuple[str, str, str]:
    return element.color, f"{element.color}-line", "ink"


PLAIN = Styling(color_by_kind)


@dataclass(frozen=True)
class DrawnBox:
    """The shapes of an element and their size. The top left corner is at (0, 0)."""

    shapes: tuple[Shape, ...]
    width: float
    height: float


def is_thin(element: Element) -> bool:
    """Whether an element may be drawn as one line: a norm, or a bare weight."""
    plain = not element.about and len(element.rows) <= 1 and not any(label for label, _ in element.rows)
    return element.color == "norm" or (element.color == "other" and plain)


def draw_box(element: Element, width: float, look: Styling = PLAIN) -> DrawnBox:
    """Draw an element `width` wide. A norm or bare weight is one line and may be narrower; a bare weight that does not
    fit becomes a box of several lines."""
    fits = element.color == "norm" or _measure_thin(element, look) <= width
    return _draw_thin(element, width, look) if is_thin(element) and fits else _draw_full(element, width, look)


def _measure_thin(element: Element, look: Styling) -> float:
    note = look.note(element)
    said = " ".join([element.title, *(text for _, text in element.rows)])
    return measure_text(said, SMALL) + (measure_text(note, SMALL, True) + 8 if note else 0) + 2 * PAD + 0.01


def _draw_thin(element: Element, width: float, look: Styling) -> DrawnBox:
    fill, line, ink = look.fill(element)
    lit = _is_lit(element, "", look)
    said = " ".join([element.title, *(text for _, text in element.rows)])
    note = look.note(element)
    size = min(width, max(0.62 * width, _measure_thin(element, look)))
    room = size - 2 * PAD - (measure_text(note, SMALL, True) + 8 if note else 0)
    border = "lit" if lit else line
    shapes: list[Shape] = [
        Box(0, 0, size, THIN, fill, border, 12 if element.color == "norm" else 4, 2 if lit else 1, tip=_tip(element))
    ]
    text = cut_text(said, room, SMALL)
    if note:
        shapes += [
            Label(PAD, THIN / 2 + 4.3, text, SMALL, color=ink),
            Label(size - PAD, THIN / 2 + 4.3, note, SMALL, True, ink, "end"),
        ]
    else:
        shapes.append(Label(size / 2, THIN / 2 + 4.3, text, SMALL, color=ink, anchor="middle"))
    return DrawnBox(tuple(shapes), size, THIN)


def _draw_full(element: Element, width: float, look: Styling) -> DrawnBox:
    fill, line, ink = look.fill(element)
    soft = "muted" if ink == "ink" else ink
    inner, y = width - 2 * PAD, PAD + 11.0
    note = look.note(element)
    room = inner - (measure_text(note, SMALL, True) + 8 if note else 0)
    title = cut_text(element.title, room, NORMAL, True)
    shapes: list[Shape] = [Label(PAD, y, title, NORMAL, True, "lit" if _is_lit(element, "title", look) else ink)]
    if note:
        shapes.append(Label(width - PAD, y, note, SMALL, True, ink, "end"))
    for said in wrap_text(element.about, inner, SMALL):
        y += LINE
        shapes.append(Label(PAD, y, said, SMALL, color=soft))
    rows = list(element.rows) + ([("", element.kept)] if element.kept else [])
    for label, text in rows:
        drawn, y = _draw_row(label, text, inner, y, ink, soft, look, element)
        shapes += drawn
    if element.experts is not None:
        drawn, y = _draw_experts(element.experts, inner, y, ink if fill.startswith("heat") else line, soft)
        shapes += drawn
    height = y + PAD + 1
    lit = _is_lit(element, "", look)
    box = Box(
        0, 0, width, height, fill, "lit" if lit else line, 6, 2 if lit else 1, tip=_tip(element), name=element.name
    )
    return DrawnBox((box, *shapes), width, height)


def _draw_row(
    label: str, text: str, inner: float, y: float, ink: str, soft: str, look: Styling, element: Element
) -> tuple[list[Shape], float]:
    """Draw a row below the baseline y: the text to the right of its label, or below a long label. Return the shapes and
    the last baseline."""
    indent = measure_text(f"{label}  ", SMALL) if label else 0.0
    shapes: list[Shape] = [Label(PAD, y + LINE, label, SMALL, color=soft)] if label else []
    if indent > 0.42 * inner:
        above = wrap_text(label, inner, SMALL)
        shapes = [Label(PAD, y + LINE * (at + 1), line, SMALL, color=soft) for at, line in enumerate(above)]
        indent, y = PAD, y + LINE * len(above)
    lines = wrap_facts(text, inner - indent)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], cut_text(" ".join(lines[MOST_LINES - 1 :]), inner - indent, SMALL)]
    colors = ["lit" if (element.name, fact) in look.lit else ink for fact in text.split(BETWEEN)]
    fact = 0
    for line in lines:
        y += LINE
        x, words = PAD + indent, []
        for word in line.split(" "):
            words.append((word, colors[min(fact, len(colors) - 1)]))
            fact += word == BETWEEN.strip()
        for color, alike in groupby(words, itemgetter(1)):
            said = " ".join(word for word, _ in alike)
            shapes.append(Label(x, y, said, SMALL, color=color))
            x += measure_text(f"{said} ", SMALL)
    return shapes, y


def wrap_facts(text: str, width: float, size: float = SMALL) -> list[str]:
    """Break a row into lines between its facts. Only a fact that is wider than a line is broken."""
    words: list[str] = []
    facts = text.split(BETWEEN)
    for at, fact in enumerate(facts):
        said = fact if at == len(facts) - 1 else f"{fact}{BETWEEN.rstrip()}"
        fits = measure_text(said, size) <= width
        *begin, end = [said] if fits else fact.split()
        words += [*begin, end if fits or said == fact else f"{end}{BETWEEN.rstrip()}"]
    return wrap_words(words, width, size)


def _draw_experts(experts: ExpertCounts, inner: float, y: float, line: str, soft: str) -> tuple[list[Shape], float]:
    """Draw a cell per expert (or per several), filled for the active experts of a token. Below are shared experts."""
    each = -(-experts.count // MOST_CELLS)
    cells = -(-experts.count // each)
    lit = max(1, round(experts.active / each))
    across = int((inner + GAP) // (CELL + GAP))
    y += 7
    shapes: list[Shape] = []
    for at in range(cells):
        column, row = at % across, at // across
        fill = line if at < lit else ""
        shapes.append(Box(PAD + column * (CELL + GAP), y + row * (CELL + GAP), CELL, CELL, fill, line, 2))
    y += -(-cells // across) * (CELL + GAP) - GAP
    if each > 1:
        y += LINE
        shapes.append(Label(PAD, y, cut_text(f"each square: {each} experts", inner, SMALL), SMALL, color=soft))
    below, y = _draw_shared(experts, CELL / math.sqrt(each), inner, y, line, soft)
    return shapes + below, y


def _draw_shared(
    experts: ExpertCounts, one: float, inner: float, y: float, line: str, soft: str
) -> tuple[list[Shape], float]:
    """Draw a filled square for each shared expert, with an area in proportion to its weights. `one` is the side of the
    square of a routed expert."""
    if not experts.shared:
        return [], y
    side = min(one * math.sqrt(experts.times), 3 * CELL)
    left = PAD + experts.shared * (side + GAP) + 4
    times = f"{experts.times:.3g}"
    said = f"{experts.shared} shared, always on" + (f", {times} × as wide" if times != "1" else "")
    lines = wrap_text(said, inner + PAD - left, SMALL)
    top = y + max(7, LINE - side)
    shapes: list[Shape] = [Box(PAD + at * (side + GAP), top, side, side, line, line, 2) for at in range(experts.shared)]
    first = top + side
    shapes += [Label(left, first + at * LINE, text, SMALL, color=soft) for at, text in enumerate(lines)]
    return shapes, first + LINE * (len(lines) - 1)


def _is_lit(element: Element, what: str, look: Styling) -> bool:
    return (element.name, what) in look.lit


def _tip(element: Element) -> str:
    """Return the tooltip of an element's box: all of its texts and figures."""
    share = element.share
    figures = [f"{share.params:,} parameters"] if share.params else []
    figures += [f"{share.active:,} active"] if share.active != share.params else []
    figures += [f"{share.flops:,.0f} FLOPs per token"] if share.flops else []
    figures += [f"{share.cache:,.0f} bytes of cache"] if share.cache else []
    said = [" ".join(filter(None, row)) for row in element.rows]
    return "\n".join(filter(None, [f"{element.name}: {element.title}", element.about, *said, *figures]))
