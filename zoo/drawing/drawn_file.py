"""Write a scene to a file, in the format of the file's suffix. PNG and PDF are drawn with matplotlib, which only this
module imports."""

from __future__ import annotations

import base64
import io
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from zoo.disk import replace_file
from zoo.drawing.lettering import read_font
from zoo.drawing.palette import COLOURS
from zoo.drawing.scene import Box, Label, Polygon, Scene, Shape, arrow_head, round_corners
from zoo.drawing.vector import shorten_for_head, write_html, write_svg
from zoo.errors import ConfigError
from zoo.untrusted.printable import escape_controls

FORMS = (".svg", ".png", ".html", ".pdf", ".txt")
SHARPNESS = 2
"""Pixels of a PNG per unit of its scene."""


def check_drawing(file: Path) -> None:
    """Raise ConfigError for a file that cannot hold a drawing. Called before drawing begins."""
    if file.suffix.lower() not in FORMS:
        raise ConfigError(f"out: {file} is not a drawing (a file ending in {', '.join(FORMS[:-1])} or {FORMS[-1]})")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"out: {file.parent} is no folder (make it first)")


def write_drawing(scene: Scene, file: Path, text: str = "", *, dark: bool = False) -> None:
    """Write a scene as .svg, .html, .png or .pdf, or `text` as .txt. Raises ConfigError as `check_drawing` does."""
    check_drawing(file)
    form = file.suffix.lower().removeprefix(".")
    if form == "txt":
        written = text.encode()
    elif form in ("svg", "html"):
        scheme = "dark" if dark else ""
        written = (write_svg(scene, scheme=scheme) if form == "svg" else write_html(scene, scheme=scheme)).encode()
    else:
        written = write_raster(scene, form, dark=dark)
    with replace_file(file) as draft:
        draft.write_bytes(written)


# ---------------------------------------------------------------- pixels


def write_raster(scene: Scene, form: str, *, dark: bool = False) -> bytes:
    """Write a scene as `pdf`, or as `png` with SHARPNESS pixels per unit."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(scene.width / 72, scene.height / 72), dpi=72 * SHARPNESS)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    figure.patch.set_facecolor(COLOURS["paper"][dark])
    for order, item in enumerate(scene.items):
        for artist in _draw_item(item, int(dark)):
            artist.set_zorder(order)
            axes.add_artist(artist)
    written = io.BytesIO()
    stamp = {"CreationDate": None} if form == "pdf" else {"Software": None}
    with rc_context({"pdf.fonttype": 42, "text.hinting": "no_hinting"}):
        figure.savefig(written, format=form, dpi=72 * SHARPNESS, facecolor=figure.get_facecolor(), metadata=stamp)
    return written.getvalue()


def _draw_item(item: Shape, scheme: int) -> list[Any]:
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.patches import Polygon as Area
    from matplotlib.path import Path as Steps

    def colour(name: str) -> str:
        return COLOURS[name][scheme] if name else "none"

    if isinstance(item, Label):
        return [_draw_text(item, colour(item.color))]
    if isinstance(item, Polygon):
        return [Area(item.points, closed=True, facecolor=colour(item.fill), edgecolor=colour(item.line), linewidth=1)]
    if isinstance(item, Box):
        inset = item.thickness / 2 if item.line else 0
        radius = max(min(item.radius, item.width / 2, item.height / 2) - inset, 0)
        place = (item.x + inset, item.y + inset)
        size = (item.width - 2 * inset, item.height - 2 * inset)
        style = f"round,pad=0,rounding_size={radius}" if radius else "square,pad=0"
        look = {"facecolor": colour(item.fill), "edgecolor": colour(item.line), "linewidth": item.thickness}
        return [FancyBboxPatch(place, *size, boxstyle=style, linestyle=(0, (4, 3)) if item.dashed else "-", **look)]
    steps = round_corners(shorten_for_head(item), item.radius)
    points, codes = [], []
    for step, numbers in steps:
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        points += pairs
        codes += [{"M": Steps.MOVETO, "L": Steps.LINETO, "Q": Steps.CURVE3}[step]] * len(pairs)
    dashes = (0, (3, 3)) if item.dashed else "-"
    look = {"edgecolor": colour(item.color), "linewidth": item.thickness, "linestyle": dashes}
    line = PathPatch(Steps(points, codes), facecolor="none", capstyle="butt", **look)
    if not item.arrow:
        return [line]
    head = arrow_head(item.points)
    return [line, Area(head, closed=True, facecolor=colour(item.color), edgecolor="none")]


def _draw_text(label: Label, colour: str) -> Any:
    from matplotlib.text import Text

    align: Any = {"start": "left", "middle": "center", "end": "right"}[label.anchor]
    return Text(
        label.x,
        label.y,
        escape_controls(label.text),
        color=colour,
        fontproperties=load_font("bold" if label.bold else "regular"),
        fontsize=label.size,
        horizontalalignment=align,
        verticalalignment="baseline",
        rotation=0 if label.upright else 90,
        rotation_mode="anchor",
        parse_math=False,
    )


@cache
def load_font(name: str) -> Any:
    """Register a weight of the font (`regular` or `bold`) with matplotlib, as a TrueType file, the only format that it
    reads. Letters that the font lacks are drawn in matplotlib's own font."""
    from fontTools.ttLib import TTFont
    from matplotlib.font_manager import FontProperties, fontManager

    font = TTFont(io.BytesIO(base64.b64decode(read_font()[name]["woff"])))
    font.flavor = None
    file = Path(_font_folder().name) / f"{name}.ttf"
    font.save(file)
    fontManager.addfont(file)
    found: Any = fontManager.ttflist[-1]
    return FontProperties(family=[found.name, "DejaVu Sans"], weight=found.weight)


@cache
def _font_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder for font files, for the life of the process, because matplotlib reads them when
    drawing."""
    return tempfile.TemporaryDirectory(prefix="zoo-font-")
