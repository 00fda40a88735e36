"""Measure text in the font of drawings: Inter, of which a subset of Latin letters is in the package (OFL.txt)."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

ASCENT, DESCENT = 0.76, 0.2
"""How far letters reach above and below their baseline, in parts of the font's size."""

FAMILY = "Inter, 'Helvetica Neue', Arial, sans-serif"
"""CSS font family: the embedded font first, then fonts of similar width for letters that it does not have."""

UNKNOWN, WIDE = 650.0, 1000.0  # widths of letters that the font does not have, in thousandths of its size


@cache
def read_font() -> dict[str, Any]:
    """Read the font's data: for `regular` and `bold` the `widths` of letters and the `woff` file in base64."""
    return json.loads(files("zoo.drawing").joinpath("inter.json").read_text(encoding="utf-8"))


def measure_text(text: str, size: float, bold: bool = False) -> float:
    """Measure the width of a text, in the unit of `size`. Letters that the font does not have are estimated."""
    widths = read_font()["bold" if bold else "regular"]["widths"]
    return size / 1000 * sum(widths.get(letter) or _estimate(letter) for letter in text)


def _estimate(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    return WIDE if unicodedata.east_asian_width(letter) in "WF" else UNKNOWN


def cut_text(text: str, width: float, size: float, bold: bool = False) -> str:
    """Cut a text that is wider than `width`: its end becomes `…`."""
    if measure_text(text, size, bold) <= width:
        return text
    while text and measure_text(text + "…", size, bold) > width:
        text = text[:-1].rstrip()
    return text + "…"


def wrap_text(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Break a text between words into lines no wider than `width`. A word that is wider is cut."""
    return wrap_words(text.split(), width, size, bold)


def wrap_words(words: Iterable[str], width: float, size: float, bold: bool = False) -> list[str]:
    """Join words, which may contain spaces, to lines no wider than `width`. A word that is wider is cut."""
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and measure_text(joined, size, bold) <= width:
            lines[-1] = joined
        else:
            lines.append(cut_text(word, width, size, bold))
    return lines
