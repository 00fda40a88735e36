"""Draw the gallery's charts as SVG: curves on logarithmic axes, effects with intervals, models by year.

Colours are classes of site.css, so that a chart adapts to a light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.report.forest_plot import DrawnEffect, find_limit
from zoo.report.svg import escape_text
from zoo.units import format_number, format_si

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 300, 64, 14, 12, 42
"""Size of a chart of curves and its margins, in pixels at full width. Phones draw it smaller."""

SERIES = 8
"""Number of colours of curves in site.css: the classes s0, s1 …"""


@dataclass(frozen=True)
class LogScale:
    """A logarithmic scale that maps `low` to the pixel `first` and `high` to the pixel `last`."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.first + share * (self.last - self.first)

    def list_ticks(self, base: int, most: int) -> list[float]:
        """List the powers of a base within the scale. Of more than `most`, list every second, third … power."""
        least, last = math.ceil(math.log(self.low, base) - 1e-9), math.floor(math.log(self.high, base) + 1e-9)
        step = -(-(last - least + 1) // most)
        return [float(base) ** power for power in range(least, last + 1, max(step, 1))]


def draw_curves(curves: Mapping[str, Sequence[float]], at: Sequence[int], floor: tuple[str, float], title: str) -> str:
    """Draw bytes by context length (`at`, in tokens) on logarithmic axes, a curve for each name. `floor` is a constant,
    drawn as a dashed line."""
    known = [value for each in curves.values() for value in each if value > 0]
    low, high = min([*known, floor[1]]) / 1.6, max([*known, floor[1]]) * 1.6
    xs = LogScale(at[0], at[-1] if len(at) > 1 else 2 * at[0], LEFT, WIDTH - RIGHT)
    ys = LogScale(low, high, HEIGHT - BOTTOM, TOP)
    body = [_open(WIDTH, HEIGHT, title), *_grid(xs, ys)]
    y = ys(floor[1])
    body.append(f'<path class="floor" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    for index, values in enumerate(curves.values()):
        points = [(xs(x), ys(value)) for x, value in zip(at, values, strict=True) if value > 0]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        body.append(f'<path class="curve s{index % SERIES}" d="{path}"/>')
    label = f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">'
    return "".join([*body, f"{label}tokens of context</text></svg>"])


def _open(width: float, height: float, title: str) -> str:
    drawn = f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape_text(title)}">'
    return f"{drawn}<title>{escape_text(title)}</title>"


def _grid(xs: LogScale, ys: LogScale) -> list[str]:
    drawn = []
    for tick in ys.list_ticks(10, 6):
        y = ys(tick)
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_trim_zeros(tick, "B")}</text>')
    for tick in xs.list_ticks(2, 8):
        x = xs(tick)
        drawn.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{name_tokens(tick)}</text>')
    return drawn


def _trim_zeros(value: float, unit: str = "") -> str:
    return format_si(value, unit).replace(".00", "").replace(".0", "")


def name_tokens(value: float) -> str:
    """Format a number of tokens: 131072 as 128k, 1048576 as 1M."""
    return f"{value / 2**20:g}M" if value >= 2**20 else f"{value / 1024:.4g}k" if value >= 1024 else f"{value:g}"


# ---------------------------------------------------------------- effects

ROW, ACROSS, EDGE = 40, 460, 12
"""Height of an effect's row with its label, width of the axis, and margin on either side, in pixels."""


def draw_effects(effects: Sequence[DrawnEffect], title: str) -> str:
    """Draw differences with confidence intervals, one below the other, on a common axis. The margin of equivalence is a
    band, the paper's effect a diamond. For arms with fixed learning rates the mark is hollow. A difference beyond the
    axis is an arrow with its number."""
    limit, height = find_limit(effects), ROW * len(effects) + 34
    ends = [e for each in effects for e in (*each.interval, -(each.margin or 0), each.margin or 0, each.source or 0)]
    least, most = (max(-limit, 1.1 * min(ends)), min(limit, 1.1 * max(ends)))

    def place(value: float) -> float:
        return EDGE + (ACROSS - 2 * EDGE) * (max(least, min(most, value)) - least) / (most - least)

    body = [_open(ACROSS, height, title)]
    ticks = [each for each in (-limit / 2, 0, limit / 2) if least < each < most]
    body += [
        f'<text x="{place(tick):.1f}" y="{height - 8}" text-anchor="middle">{_name_effect(tick)}</text>'
        for tick in ticks
    ]
    for at, each in enumerate(effects):
        y = 4 + ROW * at + 29
        body.append(f'<text class="effect-label" x="{EDGE}" y="{y - 14}">{escape_text(each.label)}</text>')
        if each.margin is not None:
            low, high = place(-each.margin), place(each.margin)
            body.append(f'<rect class="margin" x="{low:.1f}" y="{y - 8}" width="{high - low:.1f}" height="16"/>')
        for tick in ticks:  # beside each interval alone, so that no line runs through a label
            body.append(f'<path class="{"grid" if tick else "zero"}" d="M{place(tick):.1f} {y - 9}V{y + 9}"/>')
        low, high = map(place, each.interval)
        body.append(f'<path class="effect v-{each.verdict}" d="M{low:.1f} {y}H{high:.1f}"/>')
        body.append(_draw_mark(each, place(each.value), y, least <= each.value <= most))
        if each.source is not None:
            body.append(f'<text class="mark" x="{place(each.source):.1f}" y="{y - 3}" text-anchor="middle">◆</text>')
    return "".join([*body, "</svg>"])


def _draw_mark(each: DrawnEffect, x: float, y: int, inside: bool) -> str:
    right, color = each.value > 0, f'class="mark v-{each.verdict}"'
    if inside:
        return f'<text {color} x="{x:.1f}" y="{y + 4}" text-anchor="middle">{"○" if each.fixed_rate else "●"}</text>'
    x, anchor = (x + EDGE / 2, "end") if right else (x - EDGE / 2, "start")
    number = f'<text {color} x="{ACROSS - EDGE / 2}" y="{y - 14}" text-anchor="end">{_name_effect(each.value)}</text>'
    return f'{number}<text {color} x="{x:.1f}" y="{y + 4}" text-anchor="{anchor}">{"▶" if right else "◀"}</text>'


def _name_effect(value: float) -> str:
    return format_number(value, "+.2g") if value else "0"


# ---------------------------------------------------------------- models by year


GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class YearMark:
    """A model on the timeline: link, year, parameters, colour index and text."""

    href: str
    name: str
    year: int
    params: int
    color: int


def draw_years(marks: Sequence[YearMark], title: str) -> str:
    """Draw models by year and number of parameters, on a logarithmic axis, each as a link. The position within a year
    has no meaning: the golden ratio spreads models of one size."""
    years = range(min(each.year for each in marks), max(each.year for each in marks) + 1)
    width, height = LEFT + 128 * len(years) + RIGHT, 460
    ys = LogScale(min(m.params for m in marks) / 1.5, max(m.params for m in marks) * 1.5, height - BOTTOM, TOP)
    body = [_open(width, height, title).replace('role="img"', 'role="group"')]
    for tick in ys.list_ticks(10, 8):
        body.append(f'<path class="grid" d="M{LEFT} {ys(tick):.1f}H{width - RIGHT}"/>')
        label = _trim_zeros(tick).replace("G", "B").replace(" ", "")
        body.append(f'<text x="{LEFT - 8}" y="{ys(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    for at, year in enumerate(years):
        left = LEFT + 128 * at
        body.append(f'<path class="grid" d="M{left} {TOP}V{height - BOTTOM}"/>')
        body.append(f'<text class="year" x="{left + 64}" y="{height - 18}" text-anchor="middle">{year}</text>')
        own = sorted((each for each in marks if each.year == year), key=lambda each: each.params)
        for place, each in enumerate(own):
            x = left + 8 + 112 * ((0.5 + place * GOLDEN) % 1)
            tip = f"{escape_text(each.name)}, {year}, {format_si(each.params).replace('G', 'B')} parameters"
            dot = f'<circle class="dot f{each.color}" cx="{x:.1f}" cy="{ys(each.params):.1f}" r="5"/>'
            body.append(f'<a href="{escape_text(each.href)}" aria-label="{tip}"><title>{tip}</title>{dot}</a>')
    return "".join([*body, "</svg>"])
