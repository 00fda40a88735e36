"""Predict the differences that an experiment of a probe can detect, from the noise of stored runs (`probe_noise`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoo.analysis.verdict.power import LEVEL, POWER, find_smallest_effect
from zoo.experiments.experiment import Expectation, Experiment, list_overrides
from zoo.experiments.judging import describe_pair
from zoo.experiments.power_check import tell_blind
from zoo.experiments.probe_noise import ProbeNoise, find_largest, find_probe_noise
from zoo.experiments.recipe_tables import list_wide_margins
from zoo.report.tables import TextTable


@dataclass(frozen=True)
class ProbePower:
    """The difference that an experiment of a probe can detect, for one expected verdict."""

    expected: Expectation
    metric: str
    noises: dict[str, ProbeNoise | None]
    """The noise of a run of each of the two arms."""
    sigma: float | None
    """Standard deviation of the difference between two arms with one seed. None if no stored run has the metric."""
    smallest: float | None
    """Smallest true difference that is detected with power POWER at Holm's strictest level."""
    largest: float
    """Largest possible difference in the metric."""

    @property
    def detected(self) -> float | None:
        """The smallest detectable difference; infinite if it exceeds the largest possible one."""
        return math.inf if self.smallest is not None and self.smallest > self.largest else self.smallest

    @property
    def foreign(self) -> dict[str, ProbeNoise]:
        """The noises, by arm, that come from other models."""
        return {arm: each for arm, each in self.noises.items() if each is not None and not each.own}

    @property
    def source(self) -> str:
        """The source of the noise, in words."""
        if self.sigma is None:
            return "no run is stored (--sigma)"
        if not self.noises:
            return "the file"
        return f"other models, for {' and '.join(self.foreign)}" if self.foreign else "stored runs of both"

    def to_dict(self) -> dict[str, Any]:
        """Return the detectable difference as plain data."""
        about = {"arm": self.expected.arm, "against": self.expected.against, "metric": self.metric}
        return about | {"sigma": self.sigma, "smallest_effect": self.smallest, "sigma_from": self.source}


def foresee_probe(experiment: Experiment) -> list[ProbePower]:
    """Compute, for each expected verdict, the difference that an experiment of a probe can detect. In the experiment's
    metric, the file's `sigma` replaces that of stored runs."""
    asked = experiment.probe
    assert asked is not None
    task, found = asked.make(), []
    compared = [each for each in experiment.list_expectations() if each.verdict and each.against]
    effect = find_smallest_effect(experiment.form(False).looks[-1], LEVEL / max(len(compared), 1))
    for each in compared:
        metric, noises, sigma = each.metric or experiment.metric, {}, experiment.sigma
        if sigma is None or metric != experiment.metric:
            for arm in (each.arm, str(each.against)):
                own = asked.split_model(list_overrides(experiment, arm))
                noises[arm] = find_probe_noise(task, metric, *own)
            known = [noise.sigma for noise in noises.values() if noise is not None]
            sigma = math.hypot(*known) if len(known) == len(noises) else None
        smallest = None if sigma is None or effect is None else effect * sigma
        found.append(ProbePower(each, metric, noises, sigma, smallest, find_largest(task, metric)))
    return found


def make_power_table(experiment: Experiment, powers: Sequence[ProbePower]) -> TextTable:
    """Make a table with a row for each expected verdict."""
    assert experiment.probe is not None
    unit = experiment.probe.make().level_is
    seeds, rows = experiment.form(False).looks[-1], []
    for each in powers:
        seen, of = each.detected, f" {unit}" if each.metric == "reach" else ""
        told = "" if seen is None else "none" if math.isinf(seen) else f"{seen:.2g}{of} or more"
        sigma = "unknown" if each.sigma is None else f"{each.sigma:.2g}"
        rows.append([describe_pair(each.expected), sigma, told, each.source])
    header = (experiment.metric, "σ of difference", f"detectable with {seeds} seeds", "source of σ")
    return TextTable("", header, rows, (1, 2))


def list_power_notes(experiment: Experiment, powers: Sequence[ProbePower]) -> list[str]:
    """List notes on the table's assumptions: the power, and the source of σ."""
    assert experiment.probe is not None
    holm = f", after Holm over {len(powers)} comparisons" if len(powers) > 1 else ""
    notes = [f"detectable: the smallest true difference that is shown with a power of {POWER:g}{holm}"]
    if any(each.detected == math.inf for each in powers):
        notes.append("none: no difference that large is possible")
    other = [noise for each in powers for noise in each.foreign.values()]
    if other:
        aside = "" if all(each.alike for each in other) else " at other settings"
        models = ", ".join(dict.fromkeys(model for each in other for model in each.models))
        notes.append(f"other models: σ is pooled over stored runs of {experiment.probe.name}{aside}, of {models}")
    return notes


def list_blind_probe(experiment: Experiment, powers: Sequence[ProbePower]) -> list[str]:
    """List the published effects and margins that the design could not detect, and margins that include the effect, a
    line each."""
    level, lines = LEVEL / max(len(powers), 1), list_wide_margins(experiment)
    for each in powers:
        if each.detected is not None:
            lines += tell_blind(experiment, each.expected, each.detected, each.sigma, level)
    return lines
