"""Find the published effects that an experiment's design could not detect, before it runs.

The noise is the experiment's own `sigma`, or that of the noise atlas: the median standard deviation of a pair's
difference over the kept verdicts with the same metric whose models are of about the same size.
"""

from __future__ import annotations

import bisect
import functools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean, median, stdev

from zoo.analysis.verdict.difference import LossNoise
from zoo.analysis.verdict.power import LEVEL, POWER, compute_equivalence_power, count_seeds, find_smallest_effect
from zoo.analysis.verdict.rate_optimum import TOLERANCE, RateWindow, find_good_window
from zoo.analysis.verdict.spending import find_look_levels
from zoo.experiments.experiment import Expectation, Experiment, find_recipe, list_recipes
from zoo.experiments.judging import find_outcome
from zoo.experiments.recipe_tables import list_wide_margins
from zoo.jobs.outlook import Outlook
from zoo.jobs.rates import RateSearch
from zoo.report.rate_table import WINDOW
from zoo.units import format_count, format_number

NEAR = 5.0
"""Largest ratio of two models' parameters at which they are taken to have the same noise."""

TYPICAL = 0.7
"""Decades of the window of good rates that a plan takes for the baseline's: the median of the kept verdicts'."""

LOSS = 2.0
"""The loss, in nats, that a plan assumes where no verdict on a model of about its size is kept."""

EXPERIMENTS = 200
"""Experiments that are simulated for the power of a design."""


@dataclass(frozen=True)
class PairNoise:
    """The standard deviation of a pair's difference (two arms, one seed): the median over `arms` of kept verdicts that
    have between `smallest` and `largest` parameters."""

    sigma: float
    loss: float
    """The loss to which `sigma` is in the median of these arms' ratios of both."""
    arms: int
    smallest: float
    largest: float

    def describe(self) -> str:
        """Describe the noise and its source."""
        sizes = dict.fromkeys(format_count(each) for each in (self.smallest, self.largest))
        said = f"σ = {self.sigma:.3g}: the median of {self.arms} arms of kept verdicts"
        return f"{said} of {' to '.join(sizes)} parameters (--sigma replaces it)"


def assume_noise(experiment: Experiment, outlook: Outlook) -> tuple[Outlook, str]:
    """Complete an outlook whose σ is unknown by that of kept verdicts on models of its size, with a note on its source;
    the note is empty if σ is known, or if no verdict is of about the size."""
    first = next(iter(outlook.arms.values()))[0]
    params = outlook.predict(first)["params"]
    if outlook.sigma is not None or (noise := find_noise(experiment.metric, params)) is None:
        return outlook, ""
    return replace(outlook, sigma=noise.sigma), noise.describe()


@functools.lru_cache(8)
def find_noise(metric: str, params: float) -> PairNoise | None:
    """Find the noise of a metric of models whose parameters are at most NEAR times more or fewer; None if no kept
    verdict is on such a model."""
    found = [each for name in list_recipes() for each in _list_sigmas(name, metric)]
    near = [each for each in found if max(each[0] / params, params / each[0]) <= NEAR]
    if not near:
        return None
    sizes, sigma = [size for size, *_ in near], median(sigma for _, sigma, _ in near)
    share = median(sigma / value for _, sigma, value in near)
    return PairNoise(sigma, sigma / share, len(near), min(sizes), max(sizes))


def _list_sigmas(name: str, metric: str) -> Iterator[tuple[float, float, float]]:
    """List the parameters of each arm of a kept verdict but the first, the deviation of its difference, and its mean
    value."""
    _, experiment = find_recipe(name)
    outcome = find_outcome(name)
    if outcome is None or experiment.withdrawn or experiment.metric != metric:
        return
    arms = {arm: {s: v for s, v in own.items() if v is not None} for arm, own in outcome.values[metric].items()}
    (_, first), *others = arms.items()
    for arm, own in others:
        shared = [own[seed] - first[seed] for seed in own.keys() & first.keys()]
        if len(shared) > 1 and "params" in outcome.costs[arm]:
            yield outcome.costs[arm]["params"], stdev(shared), mean(own.values())


def describe_design(experiment: Experiment, outlook: Outlook) -> list[str]:
    """Describe what the design can show besides a difference: equivalence, divergence, and the levels of looks."""
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
        loss, source = find_loss(outlook)
        wide = find_wider_window(outlook.sigma / loss, len(outlook.arms), seeds, level)
        told = "is not told from any wider one" if wide is None else f"is told from one of {wide:.2f} or more"
        where = f"where σ is {100 * outlook.sigma / loss:.2g} % of the loss ({loss:.3g}: {source})"
        lines.append(f"{WINDOW}: one of {TYPICAL:g} decades {told} (power 0.8), {where}")
    if experiment.tune:
        lines.append(
            "the error of each searched learning rate widens its arm's intervals, and more seeds do not reduce it"
        )
    return lines


def find_loss(outlook: Outlook) -> tuple[float, str]:
    """Find the loss of which a window's depth is a share: that of kept verdicts on models of about the size of the
    first arm, else LOSS. Says which."""
    noise = find_noise("val_loss", outlook.predict(next(iter(outlook.arms.values()))[0])["params"])
    if noise is None:
        return LOSS, "assumed, as no verdict on a model of about this size is kept"
    return noise.loss, "that of kept verdicts of about this size"


@functools.lru_cache(8)
def find_wider_window(share: float, arms: int, seeds: int, level: float) -> float | None:
    """Find the smallest window of good rates, in decades, that searches tell from one of TYPICAL with power POWER at
    this level; None if there is none up to four times as wide. The power is simulated, by the functions that search and
    judge. `share` is the σ of a pair's difference over the loss; it is √2 times a run's if pairing neither helps nor
    hurts."""
    widths = [TYPICAL * times / 10 for times in range(11, 41)]
    at = bisect.bisect_left(
        widths, POWER, key=lambda width: _simulate_power(width, share / math.sqrt(2), arms, seeds, level)
    )
    return widths[at] if at < len(widths) else None


def _simulate_power(width: float, sigma: float, arms: int, seeds: int, level: float) -> float:
    """Count how often two arms' windows, one of TYPICAL and one of `width`, are told apart. `sigma` is a run's, at a
    loss of 1."""
    drawn, told = random.Random(0), 0
    for _ in range(EXPERIMENTS):
        noise = LossNoise.of_arms({seed: drawn.gauss(0, sigma) for seed in range(seeds)} for _ in range(arms))
        narrow, wide = (_search_window(each, sigma, noise.sigma, drawn) for each in (TYPICAL, width))
        apart = narrow.subtract_from(wide, noise.freedom)
        told += apart.known and abs(apart.difference) > apart.half_width(level)
    return told / EXPERIMENTS


def _search_window(width: float, sigma: float, noise: float, drawn: random.Random) -> RateWindow:
    """Search an arm whose loss is a parabola with a window of this width, its best rate anywhere between two tried."""
    made, best = RateSearch(1.0), drawn.uniform(-0.5, 0.5)
    while not made.finished:
        for place in made.ask():
            excess = TOLERANCE * ((place - best) / (2 * width)) ** 2
            made.tell(place, 1 + excess + drawn.gauss(0, sigma))
    return find_good_window(made.decades, noise)


def list_blind(experiment: Experiment, outlook: Outlook) -> list[str]:
    """Write a line for each published effect, or margin, that the design could not detect, and for each effect within
    its margin."""
    level, sigma, lines = LEVEL / outlook.comparisons, outlook.sigma, list_wide_margins(experiment)
    smallest = find_smallest_effect(outlook.seeds, level)
    if smallest is None or sigma is None:
        return lines
    found = {None: smallest * sigma, experiment.metric: smallest * sigma}  # σ is that of the experiment's metric
    if any(each.metric == WINDOW for each in experiment.expect):
        share = sigma / find_loss(outlook)[0]
        found[WINDOW] = (find_wider_window(share, len(outlook.arms), outlook.seeds, level) or math.inf) - TYPICAL
    for each in experiment.expect:
        published = None if each.verdict == "equivalent" else each.effect  # which lies within the margin
        effect = experiment.find_margin(each) if published is None else published
        seen = found.get(each.metric)
        if each.verdict in (None, "any") or effect is None or seen is None or abs(effect) >= seen:
            continue
        what = (
            f"the source's effect is {format_number(published, '+g')}"
            if published is not None
            else f"the margin is {effect:g}"
        )
        needed = None if each.metric == WINDOW else count_seeds(effect, sigma, level)
        would = "" if needed is None else f" ({needed:,} seeds would detect it)"
        detects = f"this design detects {seen:.2g} or more{would}" if seen < math.inf else "this design detects none"
        lines.append(f"{_describe(each)}: {what}{' decades' if each.metric == WINDOW else ''}, and {detects}")
    return lines


def _describe(each: Expectation) -> str:
    named = "" if each.metric is None else f" in {each.metric}"
    return f"{each.arm} against {each.against}{named}: {each.verdict}"
