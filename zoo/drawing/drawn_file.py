"""Write a scene to a file, in the format of the file's suffix."""

from __future__ import annotations

from pathlib import Path

from zoo.disk import replace_file
from zoo.drawing.scene import Scene
from zoo.drawing.vector import write_html, write_svg
from zoo.errors import ConfigError

FORMS = (".svg", ".png", ".html", ".pdf", ".txt")


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
        from zoo.drawing.raster import write_raster

        written = write_raster(scene, form, dark=dark)
    with replace_file(file) as draft:
        draft.write_bytes(written)
