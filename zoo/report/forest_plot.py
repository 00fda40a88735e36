"""Draw effects with their intervals, one below the other, as a forest plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"better": "tab:green", "worse": "tab:red", "equivalent": "tab:blue", "inconclusive": "tab:gray"}
"""The colour of each verdict."""


HOLLOW = {"markerfacecolor": "white"}
"""The style of an effect between arms at fixed learning rates."""


@dataclass(frozen=True)
class DrawnEffect:
    """A difference between two arms with its confidence interval, in the unit of its metric."""

    label: str
    value: float
    interval: tuple[float, float]
    """An end is infinite if the value is only a bound of the difference."""
    verdict: str
    margin: float | None = None
    source: float | None = None
    """The difference that the source reports, if it states one."""
    fixed_rate: bool = False
    """Whether the arms trained at fixed learning rates, not each at its own searched one."""


def make_forest(panels: Sequence[tuple[str, Sequence[DrawnEffect]]]) -> Figure:
    """Make a figure with a panel for each metric, given as its title and its effects, listed from top to bottom. The
    margin of equivalence is a band behind an effect, the published effect a diamond."""
    from matplotlib.figure import Figure

    sizes = [len(effects) for _, effects in panels]
    figure = Figure(figsize=(8, 0.26 * sum(sizes) + 1.1 * len(panels)), dpi=120, layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[size + 2 for size in sizes]).flatten()
    for axes, (title, effects) in zip(grid, panels, strict=True):
        limit = find_limit(effects)
        for at, each in enumerate(effects):
            _draw_effect(axes, at, each, limit)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(effects)), [each.label for each in effects], fontsize=7)
        axes.set_ylim(len(effects) - 0.4, -0.6)
        axes.set_xlim(-limit, limit)
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="x")
        axes.tick_params(axis="x", labelsize=7)
    marks = {name: grid[0].plot([], [], "o-", color=color)[0] for name, color in COLORS.items()}
    marks["fixed learning rates"] = grid[0].plot([], [], "o-", color="black", **HOLLOW)[0]
    marks["published effect"] = grid[0].plot([], [], "D", color="black", markersize=3.5)[0]
    figure.legend(marks.values(), marks, frameon=False, fontsize=8, loc="outside lower center", ncols=len(marks))
    return figure


def _draw_effect(axes: Axes, at: int, each: DrawnEffect, limit: float) -> None:
    """Draw an effect at a height: band, interval, mark, and the published effect above it. A mark beyond the limit is
    an arrow at the edge."""
    color, style = COLORS[each.verdict], HOLLOW if each.fixed_rate else {}
    if each.margin is not None:
        axes.fill_betweenx([at - 0.4, at + 0.4], -each.margin, each.margin, color="tab:blue", alpha=0.1, lw=0)
    axes.plot([max(-limit, min(limit, end)) for end in each.interval], [at, at], color=color, linewidth=1.8)
    shown: list[tuple[float, float, str, Any]] = [(each.value, at, "o", {"color": color, "markersize": 4, **style})]
    if each.source is not None:
        shown.append((each.source, at - 0.3, "D", {"color": "black", "markersize": 2.5}))
    for value, height, mark, look in shown:
        mark = mark if abs(value) <= limit else ">" if value > 0 else "<"
        axes.plot(max(-limit, min(limit, value)), height, mark, clip_on=False, **look)


def find_limit(effects: Sequence[DrawnEffect]) -> float:
    """Find the limit of the axis: three quarters of the intervals fit, because a few wide ones would hide all others.
    An effect beyond the limit is an arrow at the edge."""
    widest = sorted(max(abs(at) for at in (each.value, *each.interval) if math.isfinite(at)) for each in effects)
    return 1.1 * widest[int(0.75 * (len(widest) - 1))]
