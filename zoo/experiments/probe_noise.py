"""Estimate the noise of a probe's metric: a lower bound, and the spread over stored runs.

Stored runs are recipes/cards and the verdicts of recipes with a probe. The noise atlas (`noise_atlas`) does the same
for losses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from zoo.analysis.verdict.difference import UNKNOWN, LossNoise
from zoo.analysis.verdict.score_noise import find_answer_noise, find_level_noise
from zoo.errors import refuse
from zoo.experiments.experiment import find_recipe, list_overrides, list_recipes
from zoo.experiments.judging import find_outcome
from zoo.probes.all_probes import make_probe
from zoo.probes.base import Probe
from zoo.probes.outcome import ProbeOutcome
from zoo.probes.outcome_store import read_cards
from zoo.probes.training import count_answers


def check_metrics(probe: Probe, metrics: Sequence[str]) -> None:
    """Raise ConfigError for a metric that a probe lacks: it has `reach`, and figures of each level (`accuracy at
    16`)."""
    of_level = {level: ("accuracy", "loss", *probe.measure(level, 0.5, 1.0, 1)) for level in probe.levels}
    known = ["reach", *(f"{name} at {level}" for level, names in of_level.items() for name in names)]
    missing = (each for each in metrics if each not in known)
    refuse(f"metric: {probe.name} has no {each!r} (one of: {', '.join(known)})" for each in missing)


def read_metric(outcome: ProbeOutcome, metric: str) -> dict[int, float]:
    """Read a metric by seed: `reach`, or a metric at a level (`accuracy at 16`)."""
    if metric == "reach":
        return {each.seed: float(each.reach) for each in outcome.seeds}
    name, _, level = metric.partition(" at ")
    return {each.seed: each.levels[int(level)][name] for each in outcome.seeds}


def find_least_noise(probe: Probe, metric: str, values: Collection[float]) -> LossNoise:
    """Return the least standard deviation of a probe's metric, given its values by seed. This bound comes from rounding
    to levels, or from the finite number of answers. UNKNOWN (0) for a metric that is neither a level nor an
    accuracy."""
    if metric == "reach":
        return find_level_noise(probe.levels, values)
    name, _, level = metric.partition(" at ")
    if name not in ("accuracy", "scaled"):
        return UNKNOWN
    guessed = probe.chance(int(level)) if name == "scaled" else 0.0  # scaled = (accuracy − guessed) ÷ (1 − guessed)
    accuracies = [guessed + (1 - guessed) * each for each in values]
    found = find_answer_noise(accuracies, count_answers(probe, int(level)))
    return found._replace(sigma=found.sigma / (1 - guessed))


def find_largest(probe: Probe, metric: str) -> float:
    """Return the largest possible difference between two models in a metric of a probe; infinite if it is unbounded."""
    bounds = {"reach": float(max(probe.levels)), "accuracy": 1.0, "scaled": 1.0}
    return bounds.get(metric.partition(" at ")[0], math.inf)


@dataclass(frozen=True)
class KeptScores:
    """The values of a metric, one per seed, of a stored model on a probe."""

    name: str
    model: tuple[str, frozenset[str]]
    """The model's name and its overrides."""
    probe: Probe
    metric: str
    values: tuple[float, ...]

    @property
    def variance(self) -> float:
        """The variance over seeds, or the lower bound by `find_least_noise` if that is larger."""
        least = find_least_noise(self.probe, self.metric, self.values).sigma
        return max(LossNoise.of_arms([dict(enumerate(self.values))]).sigma, least) ** 2


@dataclass(frozen=True)
class ProbeNoise:
    """The standard deviation of a run's metric on a probe, pooled over the stored `models`."""

    sigma: float
    models: tuple[str, ...]
    own: bool
    """Whether `models` is the requested model."""
    alike: bool
    """Whether the runs had the requested settings of the probe."""


def find_probe_noise(probe: Probe, metric: str, model: str, overrides: Sequence[str]) -> ProbeNoise | None:
    """Pool the noise of a run's metric over stored runs: those of this model at the probe's settings, or else of all
    models at these settings, or else of all models at any settings. None if no run has the metric."""
    kept = _list_scores(probe.name, metric)
    alike = [each for each in kept if each.probe == probe]
    own = [each for each in alike if each.model == (model, frozenset(overrides))]
    if not (pooled := own or alike or kept):
        return None
    sigma = math.sqrt(sum(each.variance for each in pooled) / len(pooled))
    return ProbeNoise(sigma, tuple(each.name for each in pooled), bool(own), bool(alike))


@functools.lru_cache(8)
def _list_scores(probe: str, metric: str) -> list[KeptScores]:
    """List the stored runs of a probe that have a metric, for models with several seeds."""
    return [each for each in (*_list_cards(probe, metric), *_list_verdicts(probe, metric)) if len(each.values) > 1]


def _list_cards(probe: str, metric: str) -> Iterator[KeptScores]:
    level = metric.partition(" at ")[2]
    for name, own in read_cards().items():
        for each in own:
            if each.probe == probe and (not level.isdigit() or int(level) in each.chances):
                task = make_probe(probe, each.size, each.settings)
                model = (each.model, frozenset(each.overrides))
                yield KeptScores(name, model, task, metric, tuple(read_metric(each, metric).values()))


def _list_verdicts(probe: str, metric: str) -> Iterator[KeptScores]:
    """Yield the scores of the arms of verdicts, including withdrawn ones, whose noise is as informative."""
    for name in list_recipes():
        (_, recipe), outcome = find_recipe(name), find_outcome(name)
        asked = recipe.probe
        if asked is None or asked.name != probe or outcome is None or outcome.key != recipe.key():
            continue
        task = asked.make()
        for arm, own in outcome.values.get(metric, {}).items():
            model, overrides = asked.split_model(list_overrides(recipe, arm))
            values = tuple(value for value in own.values() if value is not None)
            yield KeptScores(f"{arm} ({name})", (model, frozenset(overrides)), task, metric, values)
