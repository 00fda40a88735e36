"""Render a page of the gallery: a Jinja2 template in this folder, filled with plain data."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from zoo.gallery.charts import name_tokens
from zoo.report.svg import clean_value, escape_text
from zoo.units import format_change, format_count, format_si, format_size

HOME = Path(__file__).parent
ASSETS = HOME / "assets"


def render_template(name: str, place: str, **values: Any) -> str:
    """Render a template as the page at `place`, a path within the site. All values are escaped, except SVG that is
    marked safe. In templates `root` is the path to the site's front page, for links."""
    return _open_templates().get_template(name).render(root="../" * place.count("/"), place=place, **values)


def mark_safe(svg: str) -> Any:
    """Mark SVG as safe, so that a template inserts it unchanged. Its texts are already escaped."""
    from markupsafe import Markup

    return Markup(svg)


@functools.cache
def _open_templates() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(HOME / "templates")
    strict = {"undefined": jinja2.StrictUndefined, "finalize": clean_value}
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, **strict)
    made.filters |= {"count": format_count, "size": format_size, "si": format_si, "change": format_change}
    made.filters |= {
        "whole": "{:,}".format,
        "tokens": name_tokens,
        "ticks": _mark_code,
        "si_bytes": functools.partial(format_si, unit="B"),
    }
    return made


def _mark_code(text: str) -> Any:
    """Mark text between backticks as code."""
    return mark_safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape_text(text)))
