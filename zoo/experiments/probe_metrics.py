"""Read a metric of a probe from the outcomes of its seeds, and find the least noise that it has."""

from __future__ import annotations

from collections.abc import Collection

from zoo.analysis.verdict.difference import UNKNOWN, LossNoise
from zoo.analysis.verdict.score_noise import find_answer_noise, find_level_noise
from zoo.errors import ConfigError
from zoo.probes.base import Probe
from zoo.probes.outcome import ProbeOutcome
from zoo.probes.training import count_answers


def read_metric(outcome: ProbeOutcome, metric: str) -> dict[int, float]:
    """Read a metric of each seed: `reach`, or one of a level (`accuracy at 16`). Raises ConfigError for other
    metrics."""
    if metric == "reach":
        return {each.seed: float(each.reach) for each in outcome.seeds}
    name, _, level = metric.partition(" at ")
    known = [f"{measured} at {size}" for size, found in outcome.seeds[0].levels.items() for measured in found]
    if metric not in known:
        raise ConfigError(f"metric: {outcome.probe} has no {metric!r} (one of: reach, {', '.join(known)})")
    return {each.seed: each.levels[int(level)][name] for each in outcome.seeds}


def find_least_noise(probe: Probe, metric: str, values: Collection[float]) -> LossNoise:
    """Find the standard deviation that a metric of a probe has at least, given its values by seed: that of rounding to
    levels, or of a finite number of answers; 0 for a metric that is neither a level nor an accuracy."""
    if metric == "reach":
        return find_level_noise(probe.levels, values)
    name, _, level = metric.partition(" at ")
    if name not in ("accuracy", "scaled"):
        return UNKNOWN
    guessed = probe.chance(int(level)) if name == "scaled" else 0.0  # scaled = (accuracy − guessed) ÷ (1 − guessed)
    accuracies = [guessed + (1 - guessed) * each for each in values]
    found = find_answer_noise(accuracies, count_answers(probe, int(level)))
    return found._replace(sigma=found.sigma / (1 - guessed))
