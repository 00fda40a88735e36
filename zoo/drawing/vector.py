"""Write a scene as SVG, alone or inside a page."""

from __future__ import annotations

from html import escape

from zoo.drawing.lettering import FAMILY, read_font
from zoo.drawing.palette import COLOURS, write_style
from zoo.drawing.scene import Box, Label, Polygon, Scene, Shape, Stroke, arrow_head, round_corners
from zoo.untrusted.printable import escape_controls

CLASS = "zoo-drawing"
"""CSS class of a drawing. The class `light` or `dark` added to it overrides the reader's colour scheme."""


def write_svg(scene: Scene, *, scheme: str = "", inline: bool = False) -> str:
    """Return a scene as an SVG document, with font and colours.

    `scheme` is `light`, `dark` or "" (the reader's). With `inline` the result is an element for a page with
    `write_page_style()` in a `<style>`: many drawings then share one copy of the font.
    """
    used = {colour for item in scene.items for colour in _colours(item)} | {"paper"}
    style = "" if inline else f"<style>{write_font_face()}{write_style('.' + CLASS, used)}</style>"
    size = f'viewBox="0 0 {_n(scene.width)} {_n(scene.height)}"'
    size += "" if inline else f' width="{_n(scene.width)}" height="{_n(scene.height)}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} class="{f"{CLASS} {scheme}".strip()}" role="img" '
        f'aria-label="{_text(scene.title)}" font-family="{escape(FAMILY)}" fill="none">'
    )
    about = f"<title>{_text(scene.title)}</title>" + (
        f"<desc>{_text(scene.description)}</desc>" if scene.description else ""
    )
    ground = f'<rect class="f-paper" width="{_n(scene.width)}" height="{_n(scene.height)}"/>'
    return "\n".join([head + about + style, ground, *map(_write, scene.items), "</svg>"]) + "\n"


def write_page_style() -> str:
    """Return the CSS that inline drawings need once per page: the font, and every colour."""
    return write_font_face() + write_style("." + CLASS, set(COLOURS))


def write_font_face() -> str:
    """Return the CSS that embeds the font, regular and bold."""
    font = read_font()
    return "".join(
        f"@font-face{{font-family:{font['family']};font-weight:{weight};"
        f"src:url(data:font/woff;base64,{font[name]['woff']}) format('woff')}}"
        for name, weight in (("regular", 400), ("bold", 600))
    )


def write_html(scene: Scene, *, scheme: str = "") -> str:
    """Return a scene as an HTML page, as wide as the window but no wider than the scene."""
    paper, dark = COLOURS["paper"]
    ground = f"body{{margin:0;background:{dark if scheme == 'dark' else paper}}}"
    ground += "" if scheme else f"@media (prefers-color-scheme:dark){{body{{background:{dark}}}}}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(scene.title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="{scheme or "light dark"}"><style>{write_page_style()}{ground}'
        f".{CLASS}{{display:block;margin:auto;width:100%;max-width:{_n(scene.width)}px;height:auto}}</style></head>\n"
        f"<body>{write_svg(scene, scheme=scheme, inline=True)}</body></html>\n"
    )


def _colours(item: Shape) -> tuple[str, ...]:
    if isinstance(item, Box | Polygon):
        return tuple(colour for colour in (item.fill, item.line) if colour)
    return (item.color,)


def _write(item: Shape) -> str:
    if isinstance(item, Box):
        return _write_box(item)
    if isinstance(item, Label):
        return _write_label(item)
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in item.points)
    if isinstance(item, Polygon):
        line = f" s-{item.line}" if item.line else ""
        return f'<polygon class="f-{item.fill}{line}" points="{points}"/>'
    return _write_stroke(item)


def _write_box(box: Box) -> str:
    classes = " ".join([f"f-{box.fill}"] * bool(box.fill) + [f"s-{box.line}"] * bool(box.line))
    inset = box.thickness / 2 if box.line else 0  # the border is inside, so that a box is as large as it says
    more = f' stroke-width="{_n(box.thickness)}"' if box.line and box.thickness != 1 else ""
    more += ' stroke-dasharray="4 3"' if box.dashed else ""
    more += f' data-name="{_text(box.name)}"' if box.name else ""
    place = (box.x + inset, box.y + inset, box.width - 2 * inset, box.height - 2 * inset)
    x, y, width, height = map(_n, place)
    radius = min(box.radius, box.width / 2, box.height / 2)
    found = f'<rect class="{classes}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{_n(radius)}"{more}'
    return f"{found}><title>{_text(box.tip)}</title></rect>" if box.tip else f"{found}/>"


def _write_label(label: Label) -> str:
    """Write a text as SVG. `textLength` states its width, so that the text fits even in another font."""
    anchor = "" if label.anchor == "start" else f' text-anchor="{label.anchor}"'
    weight = ' font-weight="600"' if label.bold else ""
    x, y = _n(label.x), _n(label.y)
    turned = "" if label.upright else f' transform="rotate(-90 {x} {y})"'
    length = f' textLength="{_n(label.width)}" lengthAdjust="spacingAndGlyphs"' if len(label.text) > 1 else ""
    return (
        f'<text class="f-{label.color}" x="{x}" y="{y}" font-size="{_n(label.size)}"{weight}{anchor}{length}{turned}>'
        f"{_text(label.text)}</text>"
    )


def _write_stroke(stroke: Stroke) -> str:
    points = shorten_for_head(stroke)
    path = "".join(step + " ".join(map(_n, numbers)) for step, numbers in round_corners(points, stroke.radius))
    dashes = ' stroke-dasharray="3 3"' if stroke.dashed else ""
    line = f'<path class="s-{stroke.color}" d="{path}" stroke-width="{_n(stroke.thickness)}"{dashes}/>'
    if not stroke.arrow:
        return line
    head = " ".join(f"{_n(x)},{_n(y)}" for x, y in arrow_head(stroke.points))
    return f'{line}<polygon class="f-{stroke.color}" points="{head}"/>'


def shorten_for_head(stroke: Stroke) -> list[tuple[float, float]]:
    """List the points of a stroke. With an arrow head, the line ends inside the head, so that the tip stays sharp."""
    points = list(stroke.points)
    if stroke.arrow:
        _, (ax, ay), (bx, by) = arrow_head(points)
        points[-1] = ((ax + bx) / 2, (ay + by) / 2)
    return points


def _text(text: str) -> str:
    return escape(escape_controls(text))


def _n(value: float) -> str:
    """Format a number with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
