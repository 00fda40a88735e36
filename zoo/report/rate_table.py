"""Format the learning-rate searches of arms: the chosen rates, and the widths of their windows of good rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from zoo.analysis.verdict.difference import UNKNOWN, LossNoise
from zoo.analysis.verdict.power import LEVEL
from zoo.analysis.verdict.rate_optimum import TOLERANCE, RateOptimum, RateWindow, find_good_window, fit_optimum
from zoo.units import format_number, say_p

WINDOW = "lr window"
"""The metric for the width of an arm's window of good learning rates, in decades; more is better."""

HEADER = ("arm", "lr", "best lr", "lowest loss", "window", "runs")
NOTE = (
    "lr: the rate that ran\n"
    "best lr: where a parabola through the losses of the window is lowest, ×/÷ its standard error\n"
    "lowest loss: in the runs of the search (another seed, other validation rows)\n"
    f"window: decades of rates whose loss is within {TOLERANCE:.0%} of the lowest, ± its standard error; ≥: it reaches "
    "the last rate tried; p: test of no difference from the first arm's window\n"
    "grid extended: with two rates beyond the five, as an arm's best was at the edge\n"
    "N wide: searched on a proxy of width N; the noise assumed is at least that of stored verdicts at its size"
)

MOVED = 0.17
"""The largest measured move of the best rate from 32 to 128 channels under muP, in decades (docs/verdicts.md: models
with norms of queries and keys)."""

SHIFTED = 2
"""The number of standard errors from the best rate beyond which a used rate is reported as off."""


def read_losses(search: Mapping[str, Any]) -> dict[float, float]:
    """Read a search's losses (`RateSearch.to_dict`) by log10 of the rate. Failed runs have an infinite loss."""
    return {math.log10(float(rate)): math.inf if loss is None else loss for rate, loss in search["losses"].items()}


def find_optimum(search: Mapping[str, Any], noise: float) -> RateOptimum:
    """Fit the best rate of a search, with its standard error. `noise` is the standard deviation of a loss."""
    return fit_optimum(read_losses(search), noise)


def find_noise(arms: Iterable[Mapping[int, float]], searches: Mapping[str, Mapping[str, Any]]) -> LossNoise:
    """Find the noise of the losses that searches minimise: that of the arms' losses over seeds, or that noted with a
    search on a proxy (`noise`) if it is larger, because narrow models are noisier."""
    return max([LossNoise.of_arms(arms), *(LossNoise(*each["noise"]) for each in searches.values() if "noise" in each)])


def list_rows(searches: Mapping[str, Mapping[str, Any]], noise: LossNoise = UNKNOWN) -> list[list[str]]:
    """List a row per arm: the rate used, the best rate, the lowest loss, the width of the good window, and the number
    of runs. If the noise of a loss is known, best rate and width have standard errors, and each width has a p-value
    against the first arm's, not corrected for several arms."""
    windows = find_windows(searches, noise)
    first = next(iter(windows.values()), None)
    return [
        [
            f"{name}, {key}" if key else name,
            f"{each['best']:g}",
            _describe_best(find_optimum(each, noise.sigma)),
            f"{each['val_loss']:.4f}",
            "" if key else _describe_window(windows[name], first, noise),
            _describe_effort(each),
        ]
        for name, search in searches.items()
        for key, each in list_searches(search).items()
    ]


def find_rate_errors(searches: Mapping[str, Mapping[str, Any]], noise: LossNoise) -> dict[str, float]:
    """Find, for each arm, the standard error that its searched learning rate adds to its mean loss. The error is
    infinite if only one rate has a loss."""
    return {
        name: math.hypot(*(find_optimum(each, noise.sigma).excess for each in list_searches(search).values()))
        for name, search in searches.items()
    }


def list_searches(search: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """List an arm's searches by key: "" for the learning rate's, the setting's key for any other."""
    return {"": search, **search.get("further", {})}


def find_windows(searches: Mapping[str, Mapping[str, Any]], noise: LossNoise) -> dict[str, RateWindow]:
    """Find each arm's window of good rates, with its errors. A window is also open if its search says so: a run beyond
    its end was pruned, and has no final loss (`Trials.to_dict`)."""
    found = {name: find_good_window(read_losses(each), noise.sigma) for name, each in searches.items()}
    return {
        name: replace(window, open_high=window.open_high or searches[name].get("open", False))
        for name, window in found.items()
    }


def list_transfers(searches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write a line on rates that were searched on proxies: they are assumed to transfer, and a rate MOVED decades off
    would raise the loss by an amount that the search's parabola predicts. Empty without proxies."""
    proxied = [each for each in searches.values() if each.get("width")]
    if not proxied:
        return []
    widths = ", ".join(dict.fromkeys(str(each["width"]) for each in proxied))
    cost = max(find_optimum(each, 0.0).curvature for each in proxied) * MOVED**2
    return [
        f"Rates searched on {widths} channels are assumed to be best at the arms' width too (muP), which no interval "
        f"includes; where it was measured, the best rate moved by up to {MOVED:g} decades, which would raise a loss by "
        f"up to {cost:.2g} here"
    ]


def list_shifts(
    searches: Mapping[str, Mapping[str, Any]], noise: LossNoise, pairs: Iterable[tuple[str, str]] = ()
) -> list[str]:
    """Write a line on used rates that are more than SHIFTED standard errors from the best one (an older fit chose such
    rates): their distance, and its cost in loss by the parabola. A second line has what this adds to the differences of
    `pairs` of arms. Empty if the noise of a loss is unknown, and if no rate was off."""
    costs, off, said = dict.fromkeys(searches, 0.0), set[str](), []
    for name, search in searches.items() if noise.sigma else ():
        for key, each in list_searches(search).items():
            found = find_optimum(each, noise.sigma)
            apart = math.log10(each["best"]) - found.at
            cost = found.curvature * apart**2
            costs[name] += cost
            if abs(apart) > SHIFTED * found.error:
                off.add(name)
                side = "above" if apart > 0 else "below"
                said.append(f"{name}{key and f', {key}'}: {abs(apart):.2f} decades {side}, at a cost of {cost:.3f}")
    if not said:
        return []
    about = "Rates that ran over two standard errors off the best one, with the cost in loss by the parabola"
    added = [f"{a} − {b}: {format_number(costs[a] - costs[b], '+.3f')}" for a, b in pairs if off & {a, b}]
    adds = [f"What the rates that ran add to a difference, by the parabolas of both arms: {'; '.join(added)}"]
    return [f"{about}, which no interval includes: {'; '.join(said)}", *(adds if added else [])]


def _describe_best(found: RateOptimum) -> str:
    error = f" ×/÷ {10**found.error:.2f}" if found.error and math.isfinite(found.error) else ""
    return f"{10**found.at:.3g}{error}"


def _describe_window(window: RateWindow, first: RateWindow | None, noise: LossNoise) -> str:
    error = f" ± {window.error:.2f}" if window.noise else ""
    apart = None if first is None or first is window else window.subtract_from(first, noise.freedom)
    p = apart.p_value() if apart is not None and apart.known else None
    compared = "" if p is None else f" ({say_p(p, LEVEL)}, uncorrected)"
    return f"{'≥ ' if window.open else ''}{window.width:.2f}{error} decades{compared}"


def _describe_effort(search: Mapping[str, Any]) -> str:
    tried = f"{len(search['losses'])}{', grid extended' if search['extended'] else ''}"
    tried += f", {search['pruned']} ended early" if search.get("pruned") else ""
    tried += f", {search['width']} wide" if search.get("width") else ""
    return f"{tried}; the best is at the edge" if search["edge"] else tried
