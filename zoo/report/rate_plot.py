"""Draw loss against learning rate, as measured by a sweep's searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
