"""Draw the losses of a run while it trains, and the curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, did_you_mean, refuse
from zoo.report.history import AXES, SMOOTHED_OVER, RunRecord, read_curve, smooth
from zoo.report.price_plot import as_label, check_picture, join_equal, list_colors, make_axes, write_figure
from zoo.report.wrapping import wrap_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"loss": "loss (nats per target)", "val_loss": "validation loss (nats per target)"}
LINE = 100
"""Maximum characters of a line of the legend; longer labels are wrapped."""

NOT_DRAWN = ("step", "tokens", "steps", "seconds", "flops")


def check_curves(records: Mapping[str, RunRecord], x: str, metric: str, share: float, file: Path) -> None:
    """Raise ConfigError if the file, the smoothed fraction, the metric or the x-axis is unusable."""
    check_picture(file, len(records))
    if not 0 <= share < 1:
        raise ConfigError(f"smooth: is {share}, not a share of a run (0 draws every point; 0.04 is usual)")
    known = {name for each in records.values() for line in each.lines for name in line}.difference(NOT_DRAWN)
    if not known:
        raise ConfigError("plot: no run has a line of metrics yet (wait for the first step)")
    if metric not in known:
        hint = did_you_mean(metric, known) or f" (one of: {', '.join(sorted(known))})"
        raise ConfigError(f"y: no run has a metric {metric!r}{hint}")
    lacking = (label for label, each in records.items() if any(x not in point for point in each.points()))
    reason = "those of frozen weights are not counted, nor were any by an older zoo"
    refuse(f"x: {label} has no {AXES[x]}, {reason} (--x tokens)" for label in lacking)


def draw_runs(
    records: Mapping[str, RunRecord],
    file: Path,
    *,
    x: str = "tokens",
    metric: str = "loss",
    share: float = SMOOTHED_OVER,
    log: bool = False,
) -> None:
    """Draw one metric of several runs against `x` (one of `AXES`) into a .png or .svg file. `records` maps the label of
    each run to the run.

    A training metric is drawn as its moving average over the fraction `share` of the run, with single values faint
    behind it; if `share` is 0, only the single values are drawn. Metrics of evaluations are not smoothed. With the
    metric `loss`, the validation loss is drawn too, with markers, and its last value is in the legend. Raises
    ConfigError as `check_curves` does.
    """
    check_curves(records, x, metric, share, file)
    axes = make_axes(8, 5, dpi=150)
    runs = join_equal({name: _drawn_points(each, x, metric) for name, each in records.items()})
    for (name, points), color in zip(runs.items(), list_colors(len(runs)), strict=True):
        _draw_run(axes, points, as_label(name), color, x, metric, share)
    _dress(axes, records, x, metric, log)
    write_figure(axes.figure, file)


def _drawn_points(record: RunRecord, x: str, metric: str) -> list[dict[str, Any]]:
    """List a run's points with only the values that are drawn, so that runs that differ only in speed are equal."""
    drawn = (x, metric, *(("val_loss",) if metric == "loss" else ()))
    return [{name: each[name] for name in drawn if name in each} for each in record.points()]


def _draw_run(
    axes: Axes, points: list[dict[str, Any]], label: str, color: Any, x: str, metric: str, share: float
) -> None:
    checked = read_curve(points, "val_loss", x) if metric == "loss" else ([], [])
    label = wrap_text(f"{label}: {checked[1][-1]:.3f}" if checked[1] else label, 0, 4, LINE, hyphens=False)
    at, values = read_curve(points, metric, x)
    evaluated = metric.startswith(("val_", "bits_per_byte"))
    if evaluated or not share:
        axes.plot(at, values, "o-" if evaluated else "-", color=color, markersize=4, linewidth=1.5, label=label)
    else:
        axes.plot(at, values, color=color, alpha=0.2, linewidth=0.7)
        axes.plot(at, smooth(values, share), color=color, linewidth=1.5, label=label)
    axes.plot(*checked, "o--", color=color, markersize=4, linewidth=1)


def _dress(axes: Axes, records: Mapping[str, RunRecord], x: str, metric: str, log: bool) -> None:
    if metric == "loss" and any("val_loss" in line for each in records.values() for line in each.lines):
        said = "validation (last value after the name)"
        axes.plot([], [], "o--", color="grey", markersize=4, linewidth=1, label=said)
    if log:
        axes.set_yscale("log")
    _label_axes(axes, AXES[x], LABELS.get(metric, metric.replace("_", " ")))
    lines = [line for label in axes.get_legend_handles_labels()[1] for line in label.splitlines()]
    longest = max(map(len, lines), default=0)
    columns = max(LINE // (longest + 5), 1)
    # below the axes, where it covers no curve; finding the best place inside takes seconds for long runs
    axes.figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=columns)


def _label_axes(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)


def draw_losses(lines: list[dict[str, Any]], title: str, file: Path) -> None:
    """Draw training and validation loss by tokens seen into a PNG file. Raises ConfigError if it cannot be written."""
    axes = make_axes(8, 4.5, dpi=150)
    tokens, losses = read_curve(lines, "loss")
    axes.plot(tokens, losses, color="tab:blue", alpha=0.2, linewidth=0.8)
    axes.plot(tokens, smooth(losses), color="tab:blue", linewidth=1.8, label="training")
    tokens, losses = read_curve(lines, "val_loss")
    if losses:
        axes.plot(tokens, losses, "o-", color="tab:orange", markersize=4, linewidth=1.8, label="validation")
        where = {"xytext": (0, 8), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"{losses[-1]:.3f}", (tokens[-1], losses[-1]), color="tab:orange", **where)
        last = lines[-1] if "val_loss" in lines[-1] else next(line for line in reversed(lines) if "val_loss" in line)
        bits = f" ({last['bits_per_byte']:.3f} bits per byte)" if "bits_per_byte" in last else ""
        title += f": validation loss {last['val_loss']:.3f}{bits}"
    axes.set_title(title)
    _label_axes(axes, AXES["tokens"], LABELS["loss"])
    axes.legend(frameon=False, loc="upper right")  # finding the best place takes seconds for long runs
    write_figure(axes.figure, file)
