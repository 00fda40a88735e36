"""Find the published effects that an experiment's design could not detect, before it runs.

The noise is the experiment's own `sigma`, or that of the noise atlas: the median standard deviation of a pair's
difference over all stored verdicts with the same config and metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median, stdev

from zoo.analysis.verdict.power import LEVEL, compute_equivalence_power, count_seeds, find_smallest_effect
from zoo.analysis.verdict.spending import find_look_levels
from zoo.experiments.experiment import Expectation, Experiment, find_recipe, list_recipes
from zoo.experiments.judging import find_outcome
from zoo.jobs.outlook import Outlook


@dataclass(frozen=True)
class PairNoise:
    """The standard deviation of a pair's difference (two arms, one seed), and the number of arms that it was measured
    on."""

    sigma: float
    arms: int


def find_noise(experiment: Experiment) -> PairNoise | None:
    """Find the noise of runs like an experiment's; None if no stored verdict has it."""
    found = [sigma for name in list_recipes() for sigma in _list_sigmas(name, experiment)]
    return PairNoise(median(found), len(found)) if found else None


def _list_sigmas(name: str, experiment: Experiment) -> Iterator[float]:
    _, other = find_recipe(name)
    outcome = find_outcome(name)
    if outcome is None or other.config is None or other.config != experiment.config:
        return
    arms = outcome.values.get(experiment.metric, {})
    first, *others = ({s: v for s, v in own.items() if v is not None} for own in (arms.values() if arms else [{}]))
    for own in others:
        shared = [own[seed] - first[seed] for seed in own.keys() & first.keys()]
        if len(shared) > 1:
            yield stdev(shared)


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
    if experiment.tune:
        lines.append(
            "the error of each searched learning rate widens its arm's intervals, and more seeds do not reduce it"
        )
    return lines


def list_blind(experiment: Experiment, outlook: Outlook) -> list[str]:
    """Write a line for each published effect, or margin, that the design could not detect."""
    level, sigma = LEVEL / outlook.comparisons, outlook.sigma
    smallest = find_smallest_effect(outlook.seeds, level)
    if smallest is None or sigma is None:
        return []
    lines, seen = [], smallest * sigma
    for each in experiment.expect:
        published = None if each.verdict == "equivalent" else each.effect  # which lies within the margin
        effect = experiment.find_margin(each) if published is None else published
        if each.verdict in (None, "any") or effect is None or abs(effect) >= seen:
            continue
        if each.metric not in (None, experiment.metric):  # σ is that of the experiment's metric
            continue
        what = f"the source's effect is {published:+g}" if published is not None else f"the margin is {effect:g}"
        needed = count_seeds(effect, sigma, level)
        would = "" if needed is None else f" ({needed:,} seeds would)"
        lines.append(f"{_describe(each)}: {what}, and this design detects {seen:.2g} or more{would}")
    return lines


def _describe(each: Expectation) -> str:
    return f"{each.arm} against {each.against}: {each.verdict}"
