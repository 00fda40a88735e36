"""Draw curves as small SVG panels for a page.

A run's page is written at every evaluation. Matplotlib would take most of a second for it; this takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from zoo.untrusted.printable import escape_controls

LEFT, RIGHT, TOP, BOTTOM = 58, 12, 24, 36  # margins around the axes, in pixels
TEXT, GRID, AXES = "#444", "#e8e8e8", "#888"
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


def escape_text(text: str) -> str:
    """Escape a text for HTML and SVG, including control characters, which XML does not allow."""
    return escape(escape_controls(text))


def clean_value(value: object) -> Any:
    """Escape the control characters of a template's value, which HTML forbids. Texts marked safe (SVG) are
    unchanged."""
    return escape_controls(value) if type(value) is str else value


@dataclass(frozen=True)
class Curve:
    """Points of one curve, its style, and its name in the legend ("" for no entry)."""

    at: Sequence[float]
    values: Sequence[float]
    name: str = ""
    color: int = 0
    marks: bool = False
    faint: bool = False


def draw_panel(title: str, curves: Sequence[Curve], label: str, width: int = 480, height: int = 220) -> str:
    """Draw the finite points of curves as an SVG element; "" if there are none. `label` names the x-axis."""
    points = [
        (x, y)
        for curve in curves
        for x, y in zip(curve.at, curve.values, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        return ""
    xs, ys = _Scale([x for x, _ in points], LEFT, width - RIGHT), _Scale([y for _, y in points], height - BOTTOM, TOP)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape_text(title)}" fill="none" font-family="sans-serif" font-size="11">',
        f'<text x="{LEFT}" y="14" fill="{TEXT}" font-size="12">{escape_text(title)}</text>',
        *_axes(xs, ys, width, height, label),
        *(_draw(curve, xs, ys) for curve in curves),
        *_legend([curve for curve in curves if curve.name], width),
        "</svg>",
    ]
    return "\n".join(body)


class _Scale:
    """A linear scale from values to pixels, with ticks at multiples of 1, 2, 2.5 or 5 times a power of ten."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (-1.0, 1.0)
        margin = 0.03 * (high - low)
        self.low, self.high, self.first, self.last = low - margin, high + margin, first, last

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((times * power for times in (1, 2, 2.5, 5) if times * power >= rough), 10 * power)
        return [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def format_tick(value: float) -> str:
    """Format a tick's value in short: 0.001 as `0.001`, 1500000 as `1.5M`, 2e-7 as `2e-07`."""
    size = abs(value)
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= unit:
            return f"{value / unit:.4g}{prefix}"
    return f"{value:.4g}" if size > 1e-12 else "0"


def _axes(xs: _Scale, ys: _Scale, width: int, height: int, label: str) -> list[str]:
    drawn, middle = [], f' fill="{TEXT}" text-anchor="middle"'
    for tick in ys.ticks(max(3, height // 55)):
        y = f"{ys(tick):.1f}"
        drawn.append(f'<path d="M{LEFT} {y}H{width - RIGHT}" stroke="{GRID}"/>')
        drawn.append(
            f'<text x="{LEFT - 6}" y="{ys(tick) + 4:.1f}" fill="{TEXT}" text-anchor="end">{format_tick(tick)}</text>'
        )
    for tick in xs.ticks(max(4, width // 110)):
        x = f"{xs(tick):.1f}"
        drawn.append(f'<path d="M{x} {TOP}V{height - BOTTOM}" stroke="{GRID}"/>')
        drawn.append(f'<text x="{x}" y="{height - BOTTOM + 14}"{middle}>{format_tick(tick)}</text>')
    drawn.append(f'<path d="M{LEFT} {TOP}V{height - BOTTOM}H{width - RIGHT}" stroke="{AXES}"/>')
    drawn.append(f'<text x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 6}"{middle}>{escape_text(label)}</text>')
    return drawn


def _draw(curve: Curve, xs: _Scale, ys: _Scale) -> str:
    """Draw a curve as one path, broken where a value is not finite, and its markers as another path."""
    color, path, dots, pen_down = COLORS[curve.color % len(COLORS)], [], [], False
    for x, y in zip(curve.at, curve.values, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{xs(x):.1f} {ys(y):.1f}")
        dots.append(f"M{xs(x):.1f} {ys(y):.1f}h0")  # a line of length zero with round caps is a dot
        pen_down = True
    width = 'stroke-width="0.7" opacity="0.35"' if curve.faint else 'stroke-width="1.6"'
    line = f'<path d="{"".join(path)}" stroke="{color}" {width}/>'
    if not curve.marks:
        return line
    return line + f'<path d="{"".join(dots)}" stroke="{color}" stroke-width="6" stroke-linecap="round"/>'


def _legend(named: Sequence[Curve], width: int) -> list[str]:
    drawn, right = [], width - RIGHT
    for curve in reversed(named):
        right -= 7 * len(curve.name) + 8
        color = COLORS[curve.color % len(COLORS)]
        drawn.append(f'<path d="M{right - 18} 10h14" stroke="{color}" stroke-width="1.6"/>')
        drawn.append(f'<text x="{right}" y="14" fill="{TEXT}">{escape_text(curve.name)}</text>')
        right -= 30
    return drawn
