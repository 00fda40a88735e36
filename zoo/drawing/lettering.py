"""Measure text in the font of drawings: Inter. The package contains a subset of its Latin letters (OFL.txt)."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

ASCENT, DESCENT = 0.76, 0.2
"""Extent of letters above and below the baseline, as fractions of the font size."""

FAMILY = "Inter, 'Helvetica Neue', Arial, sans-serif"
"""CSS font family: the embedded font first, then fonts of similar width for letters that the subset lacks."""

UNKNOWN, WIDE = 650.0, 1000.0  # widths of letters that the font does not have, in thousandths of its size


@cache
def read_font() -> dict[str, Any]:
    """Read the font's data. `regular` and `bold` each have the `widths` of letters and the `woff` file in base64."""
    return json.loads(files("zoo.drawing").joinpath("inter.json").read_text(encoding="utf-8"))


def measure_text(text: str, size: float, bold: bool = False) -> float:
    """Measure the width of a text, in the unit of `size`. Letters that the font lacks are estimated."""
    widths = read_font()["bold" if bold else "regular"]["widths"]
    return size / 1000 * sum(widths.get(letter) or _estimate(letter) for letter in text)


def _estimate(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    return WIDE if unicodedata.east_asian_width(letter) in "WF" else UNKNOWN


def cut_text(text: str, width: float, size: float, bold: bool = False) -> str:
    """Shorten a text to `width` by replacing its end with `…`."""
    if measure_text(text, size, bold) <= width:
        return text
    while text and measure_text(text + "…", size, bold) > width:
        text = text[:-1].rstrip()
    return text + "…"


def wrap_text(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Break a text between words into lines of at most `width`. A wider word is cut."""
    return wrap_words(text.split(), width, size, bold)


def wrap_words(words: Iterable[str], width: float, size: float, bold: bool = False) -> list[str]:
    """Join words, which may contain spaces, into lines of at most `width`. A wider word is cut."""
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and measure_text(joined, size, bold) <= width:
            lines[-1] = joined
        else:
            lines.append(cut_text(word, width, size, bold))
    return lines
