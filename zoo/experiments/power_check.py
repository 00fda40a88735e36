"""Find, before an experiment runs, the published effects that its design cannot detect.

The noise is the experiment's own `sigma`, or that of the noise atlas (`noise_atlas`).
"""

from __future__ import annotations

import bisect
import functools
import math
import random
from dataclasses import replace

from zoo.analysis.verdict.difference import LossNoise
from zoo.analysis.verdict.power import LEVEL, POWER, compute_equivalence_power, count_seeds, find_smallest_effect
from zoo.analysis.verdict.rate_optimum import TOLERANCE, RateWindow, find_good_window
from zoo.analysis.verdict.spending import find_look_levels
from zoo.experiments.experiment import Expectation, Experiment
from zoo.experiments.noise_atlas import find_noise, find_run_noise
from zoo.experiments.recipe_tables import list_wide_margins
from zoo.jobs.outlook import Outlook
from zoo.jobs.rates import RateSearch
from zoo.report.rate_table import WINDOW
from zoo.units import format_number

TYPICAL = 0.7
"""Assumed width, in decades, of the baseline's window of good learning rates: the median over stored verdicts."""

WIDEST = 4 * TYPICAL
"""Decades of the widest window with which that one is compared."""

LOSS = 2.0
"""Assumed loss, in nats, if there is no stored verdict on a model of about this size."""

EXPERIMENTS = 200
"""Number of simulated experiments for the power of a design."""


def assume_noise(experiment: Experiment, outlook: Outlook) -> tuple[Outlook, str]:
    """Fill in an unknown σ from stored verdicts on models of about this size. Return the outlook and a note on the
    source. The note is empty if σ is known, or if there is no such verdict."""
    first = next(iter(outlook.arms.values()))[0]
    params = outlook.predict(first)["params"]
    if outlook.sigma is not None or (noise := find_noise(experiment.metric, params)) is None:
        return outlook, ""
    return replace(outlook, sigma=noise.sigma), noise.describe()


def describe_design(experiment: Experiment, outlook: Outlook) -> list[str]:
    """List what the design can show besides a difference: equivalence, divergence, and the levels of looks."""
    form, level, lines = experiment.form(False), LEVEL / outlook.comparisons, []
    seeds = form.looks[-1]
    if len(form.looks) > 1:
        levels = ", ".join(f"{level:.2g}" for level in find_look_levels(tuple(form.looks)))
        lines.append(f"looks at {', '.join(map(str, form.looks))} seeds: a verdict needs p < {levels} at these")
    if outlook.sigma is None:
        lines.append("σ is unknown (with --sigma NUMBER the plan gives the detectable difference in units of loss)")
    elif experiment.margin is not None:
        power = compute_equivalence_power(experiment.margin / outlook.sigma, seeds, level)
        lines.append(f"equal arms are shown equivalent within ±{experiment.margin:g} with a chance of {power:.0%}")
    if (least := 2 / math.comb(2 * seeds, seeds)) >= level:
        lines.append(
            f"divergence cannot be shown: {seeds} runs of {seeds} against none have p = {least:.2f} (more seeds)"
        )
    if outlook.sigma is not None and any(each.metric == WINDOW for each in experiment.expect):
        share, loss, source = find_search_noise(outlook, outlook.sigma)
        wide = find_wider_window(share, len(outlook.arms), seeds, level)
        told = f"none of up to {WIDEST:g}, the widest tried" if wide is None else f"one of {wide:.2f} or more"
        line = f"{WINDOW}: one of {TYPICAL:g} decades, the median of stored verdicts, is told from {told} (power 0.8)"
        lines.append(f"{line}; assumed: σ is {100 * share:.2g} % of a loss of {loss:.3g}, {source}")
    if experiment.tune:
        lines.append(
            "the error of each searched learning rate widens its arm's intervals, and more seeds do not reduce it"
        )
    return lines


def find_search_noise(outlook: Outlook, sigma: float) -> tuple[float, float, str]:
    """Return (relative noise, loss, source of the loss) at the size at which learning rates are searched: the first
    arm's, or its proxy's. The noise is σ of a difference between two arms ÷ loss; for a proxy it is at least that of
    stored verdicts (`note_noise`). Without a stored verdict at about this size the loss is LOSS."""
    searched = (*outlook.proxies, next(iter(outlook.arms.values()))[0])[0]
    params = outlook.predict(searched)["params"]
    if outlook.proxies:
        sigma = max(sigma, math.sqrt(2) * find_run_noise(params).sigma)
    if (noise := find_noise("val_loss", params)) is None:
        return sigma / LOSS, LOSS, "as no verdict on a model of about this size is stored"
    return sigma / noise.loss, noise.loss, "that of stored verdicts on models of about this size"


@functools.lru_cache(8)
def find_wider_window(share: float, arms: int, seeds: int, level: float) -> float | None:
    """Find the narrowest window of good rates, in decades, that searches distinguish from one of TYPICAL with power
    POWER at this level; None if it exceeds four times TYPICAL. The power is simulated, with the functions that search
    and judge. `share` is σ of a difference between two arms ÷ loss, taken to be √2 times a run's."""
    widths = [TYPICAL * times / 10 for times in range(11, 41)]
    at = bisect.bisect_left(
        widths, POWER, key=lambda width: _simulate_power(width, share / math.sqrt(2), arms, seeds, level)
    )
    return widths[at] if at < len(widths) else None


def _simulate_power(width: float, sigma: float, arms: int, seeds: int, level: float) -> float:
    """Return the fraction of simulated experiments that distinguish a window of `width` from one of TYPICAL. `sigma` is
    a run's noise at a loss of 1."""
    drawn, told = random.Random(0), 0
    for _ in range(EXPERIMENTS):
        noise = LossNoise.of_arms({seed: drawn.gauss(0, sigma) for seed in range(seeds)} for _ in range(arms))
        narrow, wide = (_search_window(each, sigma, noise.sigma, drawn) for each in (TYPICAL, width))
        apart = narrow.subtract_from(wide, noise.freedom)
        told += apart.known and abs(apart.difference) > apart.half_width(level)
    return told / EXPERIMENTS


def _search_window(width: float, sigma: float, noise: float, drawn: random.Random) -> RateWindow:
    """Simulate the search of an arm whose loss is a parabola in log learning rate, with a window of this width. The
    best rate is drawn between two tried rates."""
    made, best = RateSearch(1.0), drawn.uniform(-0.5, 0.5)
    while not made.finished:
        for place in made.ask():
            excess = TOLERANCE * ((place - best) / (2 * width)) ** 2
            made.tell(place, 1 + excess + drawn.gauss(0, sigma))
    return find_good_window(made.decades, noise)


def list_blind(experiment: Experiment, outlook: Outlook) -> list[str]:
    """List the published effects and margins that the design could not detect, and margins that include the effect, a
    line each."""
    level, sigma, lines = LEVEL / outlook.comparisons, outlook.sigma, list_wide_margins(experiment)
    smallest = find_smallest_effect(outlook.seeds, level)
    if smallest is None or sigma is None:
        return lines
    found = {None: smallest * sigma, experiment.metric: smallest * sigma}  # σ is that of the experiment's metric
    if any(each.metric == WINDOW for each in experiment.expect):
        share = find_search_noise(outlook, sigma)[0]
        found[WINDOW] = (find_wider_window(share, len(outlook.arms), outlook.seeds, level) or math.inf) - TYPICAL
    for each in experiment.expect:
        if each.metric in found:
            spread = None if each.metric == WINDOW else sigma
            lines += tell_blind(experiment, each, found[each.metric], spread, level)
    return lines


def tell_blind(experiment: Experiment, each: Expectation, seen: float, sigma: float | None, level: float) -> list[str]:
    """Return a line if an expectation's published effect, or else its margin, is below `seen`, the smallest detectable
    difference. With `sigma` (of a difference between two arms) the line states the number of seeds needed."""
    published = None if each.verdict == "equivalent" else each.effect  # which lies within the margin
    effect = experiment.find_margin(each) if published is None else published
    if each.verdict in (None, "any") or effect is None or abs(effect) >= seen:
        return []
    what = (
        f"the published effect is {format_number(published, '+g')}"
        if published is not None
        else f"the margin is {effect:g}"
    )
    needed = None if sigma is None else count_seeds(effect, sigma, level)
    would = "" if needed is None else f" ({needed:,} seeds would detect it)"
    detects = f"this design detects {seen:.2g} or more" if seen < math.inf else "this design detects none"
    named = "" if each.metric is None else f" in {each.metric}"
    unit = " decades" if each.metric == WINDOW else ""
    return [f"{each.arm} against {each.against}{named}: {each.verdict}: {what}{unit}, and {detects}{would}"]
