"""Draw the verdicts on the arms of an experiment: differences with their intervals, Pareto fronts, and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from zoo.analysis.verdict.comparison import Place
from zoo.analysis.verdict.difference import MeanDifference
from zoo.analysis.verdict.power import LEVEL
from zoo.report.arms import NAMES, Arm
from zoo.report.forest_plot import COLORS
from zoo.report.history import read_curve, smooth
from zoo.report.price_plot import check_picture, list_colors, write_figure
from zoo.report.verdicts import Report, keep_finite
from zoo.units import format_count, format_si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = {"cache_bytes": lambda value: format_si(value, "B"), "flops": format_si}


DASHES = ("-", (0, (5, 3)), (0, (2, 2)))
"""Line styles of curves, used in turn."""

METRICS = {"val_loss": "validation loss", "loss": "training loss"}
"""Names of metrics in titles."""

Curve = tuple[list[float], list[float], list[float], list[float]]
"""Four lists: tokens, and the minimum, mean and maximum over seeds at these tokens."""


def draw_report(report: Report, file: Path) -> None:
    """Draw a report into a .png or .svg file. Raises ConfigError for other suffixes and for too many arms."""
    check_picture(file, len(report.arms))
    figure = make_figure(report)
    write_figure(figure, file)


def make_figure(report: Report) -> Figure:
    """Make one figure: the differences, the curves, the searches of learning rates, and a panel for each cost in which
    the arms differ."""
    from matplotlib.figure import Figure

    draws: list[Callable[[Axes], None]] = [partial(_draw_differences, report=report)]
    colors = dict(zip((each.name for each in report.arms), list_colors(len(report.arms)), strict=True))
    if curves := collect_curves(report):
        draws.append(partial(_draw_curves, report=report, colors=colors, **curves))
    if searches := report.searches():
        draws.append(partial(draw_rates, searches=searches, colors=colors))
    draws += [
        partial(_draw_front, report=report, cost=cost, front=front, colors=colors)
        for cost, front in report.fronts().items()
    ]
    deep = -(-len(draws) // 3)
    counts = [-(-(len(draws) - row) // deep) for row in range(deep)]  # panels in each row
    wide = counts[0]
    tall = max(3.6, 1.6 + 0.32 * len(report.arms))
    figure = Figure(figsize=(5.2 * wide, tall * deep + 0.25 * len(report.arms) / wide), dpi=120, layout="constrained")
    grid = figure.add_gridspec(deep, math.lcm(*counts))
    spans = [(row, grid.ncols // count, at) for row, count in enumerate(counts) for at in range(count)]
    for draw, (row, span, at) in zip(draws, spans, strict=True):
        axes = figure.add_subplot(grid[row, span * at : span * (at + 1)])
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    handles = [figure.axes[-1].plot([], [], "o", color=color)[0] for color in colors.values()]
    figure.legend(handles, list(colors), frameon=False, fontsize=8, loc="outside lower center", ncols=wide)
    return figure


def _draw_differences(axes: Axes, report: Report) -> None:
    """Draw each arm's difference from the baseline with its 95 % interval, coloured by its verdict, in front of its
    margin's band."""
    for at, arm in enumerate(report.others):
        each = report.found[arm.name]
        color = COLORS[each.verdict]
        if each.margin is not None:
            axes.fill_betweenx([at - 0.5, at + 0.5], -each.margin, each.margin, color="tab:blue", alpha=0.08, lw=0)
        if each.interval is not None:
            axes.plot(each.interval, [at, at], color=color, linewidth=2)
        if each.difference is not None:
            axes.plot(each.difference, at, "o", color=color)
        if any(each.diverged):
            lost = f"{each.diverged[0]} of {len(arm.runs)} diverged, {each.diverged[1]} of {report.baseline.name}"
            axes.annotate(
                lost, (0.5, at), xycoords=("axes fraction", "data"), color=color, fontsize=8, ha="center", va="bottom"
            )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(report.others)), [each.name for each in report.others], fontsize=8)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(len(report.others) - 0.5, -0.5)
    band = "\nband: margin of equivalence" if any(report.found[each.name].margin for each in report.others) else ""
    axes.set_xlabel(f"green better, red worse, blue equivalent, gray inconclusive{band}", fontsize=8)
    metric = METRICS.get(report.metric, report.metric)
    axes.set_title(
        f"Difference in {metric} from\n{report.baseline.name}, 95 % CI (Holm over {report.family})", fontsize=9
    )


def collect_curves(report: Report) -> dict[str, Any]:
    """Collect the curves of all arms, and the name of the metric: the training loss if no arm has two values of the
    report's metric. Empty if no curve has two points."""
    for metric in (report.metric, "loss"):
        curves = {arm.name: collect_curve(arm, metric) for arm in report.arms}
        if any(len(at) > 1 for at, *_ in curves.values()):
            return {"metric": metric, "curves": curves}
    return {}


def _draw_curves(
    axes: Axes, report: Report, metric: str, curves: Mapping[str, Curve], colors: Mapping[str, Any]
) -> None:
    """Draw the mean of the metric over each arm's seeds by tokens, and the band from minimum to maximum."""
    for place, (name, curve) in enumerate(curves.items()):
        at, low, middle, high = ([float(each) for each in line] for line in curve)  # matplotlib refuses huge integers
        dashes = DASHES[place % len(DASHES)]  # an equal curve below shows through the gaps
        dots = "." if metric == report.metric else ""
        axes.plot(at, middle, marker=dots, linestyle=dashes, color=colors[name], linewidth=1.2, markersize=4)
        axes.fill_between(at, low, high, color=colors[name], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("tokens seen", fontsize=8)
    shown = METRICS.get(metric, metric)
    own = METRICS.get(report.metric, report.metric)
    why = "" if metric == report.metric else f";\n{own} was evaluated only at the end"
    axes.set_title(f"{shown.capitalize()} over training, mean and range over seeds{why}", fontsize=9)


def collect_curve(arm: Arm, metric: str) -> Curve:
    """Collect the minimum, mean and maximum of a metric at the tokens for which all runs of an arm have a value. The
    training loss, measured on a few rows at each step, is smoothed."""
    read = [read_curve(run.points(), metric) for run in arm.finished.values()]
    curves = [dict(zip(at, smooth(own) if metric == "loss" else own, strict=True)) for at, own in read]
    at = sorted(set.intersection(*(set(each) for each in curves)))
    values = [[each[tokens] for each in curves] for tokens in at]
    return at, [min(each) for each in values], [mean(each) for each in values], [max(each) for each in values]


BEYOND = 1.5
"""Losses above this multiple of the worst arm's best loss are above the axis: they would flatten all other lines."""


def draw_rates(axes: Axes, searches: Mapping[str, Mapping[str, Any]], colors: Mapping[str, Any]) -> None:
    """Draw each arm's validation loss against its learning rates, on a logarithmic axis. The lowest loss has a ring,
    the chosen rate a dotted line. A loss above the axis is written next to a triangle at the top; a rate whose run
    failed is a cross there. `searches` and `colors` map arms to searches (`RateSearch.to_dict`) and colours."""
    limit = BEYOND * max(each["val_loss"] for each in searches.values())
    shown = {
        name: [(float(rate), loss) for rate, loss in each["losses"].items() if loss is not None and loss <= limit]
        for name, each in searches.items()
    }
    losses = [loss for points in shown.values() for _, loss in points]
    top = max(losses) + 0.05 * (max(losses) - min(losses))
    for at, (name, each) in enumerate(searches.items()):
        best, color = each["best"], colors[name]
        axes.plot(*zip(*shown[name], strict=True), ".-", color=color, linewidth=1.2, label=f"{name}: {best:g}")
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": color}
        lowest = min(shown[name], key=lambda point: point[1])
        axes.plot(*lowest, "o", **ring)
        axes.axvline(best, color=color, linestyle=":", linewidth=1)
        lost = [float(rate) for rate, loss in each["losses"].items() if loss is None]
        above = {float(rate): loss for rate, loss in each["losses"].items() if loss is not None and loss > limit}
        axes.plot(lost, [top] * len(lost), "x", color=color)
        axes.plot([*above], [top] * len(above), "^", color=color)
        for rate, loss in above.items():
            place: dict[str, Any] = {"xytext": (-6, -4 - 9 * at), "textcoords": "offset points", "ha": "right"}
            axes.annotate(f"{loss:.2f}", (rate, top), color=color, fontsize=8, **place)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", fontsize=8)
    axes.set_title(
        "Validation loss against learning rate, one seed\n"
        "(ringed: lowest, dotted: chosen, ▲: above the axis, ×: failed)",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8)


RINGS = {"on the front": ("black", "-"), "undecided": ("tab:gray", ":")}
"""Colour and line of the ring around an arm, by its place relative to the Pareto front."""


def _draw_front(axes: Axes, report: Report, cost: str, front: Mapping[str, Place], colors: Mapping[str, Any]) -> None:
    """Draw the arms' mean metric with its 95 % interval against a cost. Arms on the Pareto front have a ring, undecided
    arms a dotted ring."""
    for arm in report.arms:
        values = list(keep_finite(arm.values(report.metric)).values())
        if not values:
            continue
        color, x, y = colors[arm.name], arm.costs[cost], mean(values)
        found = MeanDifference.of_pairs(values)
        if found.known:
            axes.plot([x, x], found.interval(LEVEL), color=color, linewidth=1.2)
        axes.plot(x, y, "o", color=color, markersize=6)
        if front[arm.name] in RINGS and report.tested:
            edge, line = RINGS[front[arm.name]]
            axes.scatter(x, y, s=150, facecolors="none", edgecolors=edge, linestyles=line)
    shown = TICKS.get(cost, format_count)
    axes.xaxis.set_major_formatter(lambda value, _: shown(value))
    axes.locator_params(axis="x", nbins=3)  # more would repeat a figure where arms are near each other
    axes.set_xlabel(NAMES.get(cost, cost), fontsize=8)
    metric = METRICS.get(report.metric, report.metric).capitalize()
    rings = "ringed: Pareto-optimal, dotted: undecided"
    rings = rings if report.tested else "one seed: the Pareto front cannot be judged"
    axes.set_title(f"{metric} (95 % CI) against {NAMES.get(cost, cost)};\n{rings}", fontsize=9)
