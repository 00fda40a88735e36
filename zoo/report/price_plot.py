"""Draw the figure of `--plot`: parameters by component, memory by context length, and the roofline of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.analysis.compare import merge_orders
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.hardware import hardware
from zoo.costs.price import price
from zoo.costs.roofline import roofline
from zoo.costs.setup import Setup
from zoo.disk import replace_file
from zoo.errors import ConfigError
from zoo.units import format_count, format_si
from zoo.untrusted.printable import escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zoo.costs.rows import Priced

FORMATS = (".png", ".svg")
MOST = 12
"""Maximum models in one figure."""

TALL = 4.4
"""Minimum height of a figure, in inches."""

POINTS = 25
"""The number of context lengths at which memory is priced."""

BATCHES = (1, 8, 64, 512)
"""Batch sizes of the roofline's points."""

MARKERS = "os^Dvxp*P<>h"
"""A marker for each model, so that curves near each other can be distinguished without their colours."""

PHASES = {"decode": "o", "prefill": "^"}
"""Markers of the roofline's points."""


def check_picture(file: Path, count: int) -> None:
    """Raise ConfigError for an unusable file or too many models, before anything is priced."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"plot: {file} is not a picture (a file ending in .png or .svg)")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"plot: {file.parent} is no folder (make it first)")
    if count > MOST:
        raise ConfigError(f"plot: {count} models are too many for one picture (at most {MOST})")


def draw_models(specs: Mapping[str, Priced], setup: Setup, file: Path) -> None:
    """Draw models into a .png or .svg file: parameters, memory and, with a `gpu`, the roofline.

    Raises ConfigError as `check_picture` does, and if the file cannot be written.
    """
    check_picture(file, len(specs))
    from matplotlib.figure import Figure

    wide = 3 if setup.gpu else 2
    figure = Figure(figsize=(6.2 * wide, max(TALL, 2.6 + 0.45 * len(specs))), dpi=120, layout="constrained")
    axes = figure.subplots(1, wide)
    _parameters(axes[0], {label: price(spec, setup, ["params"])["params"] for label, spec in specs.items()})
    _memory(axes[1], specs, setup)
    if setup.gpu:
        _roofline(axes[2], specs, setup)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    write_figure(figure, file)


def make_axes(width: float, height: float, dpi: int = 120) -> Any:
    """Make the axes of a figure of this size, in inches, without a frame at the top and at the right."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height), dpi=dpi, layout="constrained").subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def as_label(name: str) -> str:
    """Turn a name into a legend's label: matplotlib hides labels that start with an underscore, so a space is put
    first."""
    return f" {name}" if name.startswith("_") else name


def join_equal(curves: Mapping[str, Any]) -> dict[str, Any]:
    """Join equal curves under one name, `A = B`, because one would hide the other."""
    joined: list[tuple[list[str], Any]] = []
    for name, curve in curves.items():
        names = next((names for names, each in joined if each == curve), None)
        if names is None:
            joined.append(([name], curve))
        else:
            names.append(name)
    return {" = ".join(names): curve for names, curve in joined}


def put_legend_below(axes: Any) -> None:
    """Put the legend below the axes, in as many columns as fit, so that it covers no curve. The figure's height grows
    by the legend's rows."""
    from matplotlib.transforms import ScaledTranslation

    names, figure = axes.get_legend_handles_labels()[1], axes.figure
    columns = max(1, min(4, 80 // (max(map(len, names), default=0) + 5)))
    figure.set_figheight(max(figure.get_figheight(), TALL + 0.18 * (-(-len(names) // columns) - 2)))
    below = axes.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)  # inches: beneath the axis' label
    anchor: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    axes.legend(frameon=False, fontsize=8, ncols=columns, **anchor)


def draw_literally(figure: Figure) -> None:
    """Draw the texts of a figure literally: a `$` in an untrusted title starts no formula, and control characters are
    escaped. The tick labels of logarithmic axes, which are matplotlib's own formulas, are not changed."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter, LogFormatter

    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    for axis in axes:
        if isinstance(named := axis.get_major_formatter(), FuncFormatter):  # it makes tick labels at drawing time
            named.func = partial(_name_tick, named.func)
    powers = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    formulas = {id(text) for axis in powers for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in formulas:
            text.set_parse_math(False)
            text.set_text(escape_controls(text.get_text()))


def _name_tick(name: Callable[..., Any], value: float, place: int | None = None) -> str:
    return escape_controls(str(name(value, place)))


def write_figure(figure: Figure, file: Path) -> None:
    """Write a matplotlib figure in the format of the file's suffix. Raises ConfigError if it cannot be written."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    draw_literally(figure)
    try:
        with rc_context({"svg.fonttype": "none"}), replace_file(file) as draft:  # text stays text
            if file.suffix.lower() == ".svg":
                FigureCanvasSVG(figure).print_svg(draft)
            else:
                FigureCanvasAgg(figure).print_png(draft)
    except OSError as error:
        raise ConfigError(f"plot: {file} cannot be written, {error.strerror or error}") from error


def format_svg(figure: Figure) -> str:
    """Format a matplotlib figure as an SVG element for an HTML page. Text stays text."""
    from io import StringIO

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    draw_literally(figure)
    drawn = StringIO()
    with rc_context({"svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(drawn)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def list_colors(count: int) -> list[Any]:
    """List `count` different colours, up to 20."""
    from matplotlib import colormaps

    return [colormaps["tab10" if count <= 10 else "tab20"](index) for index in range(count)]


def _parameters(axes: Axes, counted: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a bar per model, stacked by component. A black line marks the active parameters of a mixture of experts."""
    labels = list(counted)
    names = merge_orders(each["by_component"] for each in counted.values())
    left = [0] * len(labels)
    for name, color in zip(names, list_colors(len(names)), strict=True):
        widths = [each["by_component"].get(name, 0) for each in counted.values()]
        axes.barh(labels, widths, left=left, color=color, label=name.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    top = max(left)
    for at, each in enumerate(counted.values()):
        axes.text(each["total"] + 0.01 * top, at, format_count(each["total"]), va="center", fontsize=8)
        if each["active"] != each["total"]:
            axes.plot([each["active"]] * 2, [at - 0.4, at + 0.4], color="black", linewidth=1.5, label="_")
    if any(each["active"] != each["total"] for each in counted.values()):
        axes.plot([], [], color="black", linewidth=1.5, label="active per token")
    axes.set_xlim(0, 1.12 * top)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.set_xlabel("parameters")
    axes.set_title("Parameters by component")
    put_legend_below(axes)


def list_contexts(longest: int) -> list[int]:
    """List context lengths from 128 tokens (or fewer) to the longest, evenly spaced on a logarithmic scale."""
    least = min(128, longest)
    steps = (least * (longest / least) ** (index / (POINTS - 1)) for index in range(POINTS))
    return sorted({round(step) for step in steps})


def _memory(axes: Axes, specs: Mapping[str, Priced], setup: Setup) -> None:
    """Draw weights and KV cache by context length; for several models their sum, with the weights as a dotted line."""
    longest = max(setup.tokens(spec) for spec in specs.values())
    curves = {label: _price_contexts(spec, setup) for label, spec in specs.items()}
    if len(curves) == 1:
        ((weights, lengths, total),) = curves.values()
        bottom = [weights] * len(lengths)
        axes.fill_between(lengths, 0, bottom, color="tab:blue", alpha=0.35, label="weights")
        axes.fill_between(lengths, bottom, total, color="tab:orange", alpha=0.5, label="KV cache")
        axes.plot(lengths, total, color="black", linewidth=1.2, label="weights and cache")
    else:
        curves = join_equal(curves)
        for at, (label, (weights, lengths, total)) in enumerate(curves.items()):
            color = list_colors(len(curves))[at]
            axes.axhline(weights, color=color, linewidth=0.8, linestyle=":")
            axes.plot(lengths, total, color=color, marker=MARKERS[at], markersize=4, label=as_label(label))
        axes.plot([], [], color="grey", linewidth=0.8, linestyle=":", label="weights only")
    if setup.gpu is not None:
        device = hardware(setup.gpu)
        axes.axhline(device.memory, color="tab:red", linewidth=1, linestyle="--", label=f"memory of {device.title}")
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(128, longest), longest)
    axes.set_ylim(0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1e9:g}")
    axes.grid(alpha=0.25)
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("memory (GB)")
    batch = f"{setup.batch} sequences" if setup.batch > 1 else "one sequence"
    axes.set_title(f"Weights and KV cache of {batch}, {setup.dtype}")
    put_legend_below(axes)


def _price_contexts(spec: Priced, setup: Setup) -> tuple[int, list[int], list[int]]:
    """Return the bytes of weights, the context lengths, and the bytes of weights and cache at each length."""
    lengths = list_contexts(setup.tokens(spec))
    weights = price(spec, setup, ("memory.weights",))["memory"]["weights"]
    return weights, lengths, [weights + kv_cache(spec, replace(setup, context=each))["bytes"] for each in lengths]


def _roofline(axes: Axes, specs: Mapping[str, Priced], setup: Setup) -> None:
    """Draw a GPU's roofline, with points of decoding and prefill at several batch sizes (Williams et al., 2009)."""
    seen: list[float] = []
    points = join_equal({label: _bound_batches(spec, setup) for label, spec in specs.items()})
    for at, (label, phases) in enumerate(points.items()):
        color, filled = list_colors(len(points))[at], "none" if at % 2 else None  # a ring shows what is below it
        for phase, (batches, intensities, rates) in phases.items():
            style: dict[str, Any] = {"markersize": 5 + 3 * (at % 2), "markerfacecolor": filled or color}
            name = as_label(f"{label}, {phase}")
            axes.plot(intensities, rates, PHASES[phase], color=color, label=name, **style)
            seen += intensities
            if len(specs) == 1 and phase == "decode":
                for place, each in enumerate(zip(batches, intensities, rates, strict=True)):
                    aside = (5, -8) if place % 2 else (-14, 4)  # points are close: labels alternate sides
                    axes.annotate(f"{each[0]}", each[1:], xytext=aside, textcoords="offset points", fontsize=7)
    first = roofline(next(iter(specs.values())), setup)
    peak, bandwidth = first["peak_flops_per_second"], first["bandwidth_bytes_per_second"]
    ridge = peak / bandwidth
    low, high = min([*seen, ridge]) / 3, max([*seen, ridge]) * 3
    axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color="black", linewidth=1.2)
    axes.axvline(ridge, color="grey", linewidth=0.6, linestyle=":")
    axes.annotate(f"{format_si(peak, 'FLOP/s')}, {setup.dtype}", (high, peak), xytext=(0, 4), ha="right", **_OFFSET)
    middle = (low * ridge) ** 0.5
    axes.annotate(format_si(bandwidth, "B/s"), (middle, middle * bandwidth), xytext=(-8, 6), ha="right", **_OFFSET)
    axes.annotate(f"ridge {ridge:.0f} FLOP/B", (ridge, low * bandwidth), xytext=(3, 2), **_OFFSET)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP/byte)", ylabel="attainable FLOP/s")
    axes.set_xlim(low, high)
    axes.grid(alpha=0.25)
    axes.set_title(f"Roofline of {first['title']}, batch sizes {', '.join(map(str, BATCHES))}")
    put_legend_below(axes)


def _bound_batches(spec: Priced, setup: Setup) -> dict[str, tuple[list[int], list[float], list[float]]]:
    """Return for each phase the batch sizes, and their arithmetic intensities and FLOP/s."""
    bounds = [roofline(spec, replace(setup, batch=batch)) for batch in BATCHES]
    found: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for phase in PHASES:
        if each := [bound[phase] for bound in bounds if phase in bound]:
            rates = [bound["flops"] / bound["seconds"] for bound in each]
            found[phase] = [bound["batch"] for bound in each], [bound["intensity"] for bound in each], rates
    return found


_OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
