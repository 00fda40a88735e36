"""Describe the outcome of a probe on one model: learning rates tried, results by seed, levels reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import mean, median_low, stdev
from typing import Any

from zoo.analysis.verdict.rate_optimum import RateWindow, find_good_window

ENOUGH = 0.9
"""Accuracy from which a level counts as reached. Also the fraction of the best accuracy from which a rate is good."""

LEAST_GAIN = 0.1
"""Smallest (accuracy − baseline) / (1 − baseline) of a model that has learned more than a guess."""


def is_learned(accuracy: float, baseline: float) -> bool:
    """Whether an accuracy is clearly above that of an informed guess (`Probe.baseline`)."""
    return baseline < 1 and accuracy - baseline >= LEAST_GAIN * (1 - baseline)


def find_window(accuracy: Mapping[float, float], baseline: float) -> RateWindow | None:
    """Find the window of learning rates with at least 0.9 times the best accuracy. None if the best rate learns no more
    than an informed guess."""
    if not is_learned(max(accuracy.values()), baseline):
        return None
    return find_good_window({math.log10(lr): -value for lr, value in accuracy.items()}, tolerance=1 - ENOUGH)


def _describe_window(window: RateWindow) -> dict[str, Any]:
    """Return a window as plain data: its ends as learning rates, and its width in decades."""
    ends = {"low": 10**window.low, "high": 10**window.high}
    return {**ends, "open_low": window.open_low, "open_high": window.open_high, "decades": window.width}


def find_reach(accuracy: Mapping[int, float]) -> int:
    """Return the level reached: the hardest for which it and all easier levels have an accuracy of 0.9 or more. If no
    level is reached, return 0, or −1 if the easiest level is 0."""
    reached = min(0, min(accuracy) - 1)
    for level in sorted(accuracy):
        if accuracy[level] < ENOUGH:
            break
        reached = level
    return reached


@dataclass(frozen=True)
class SeedReport:
    """The results of one seed at the chosen learning rate. `levels` has accuracy, loss and the probe's further figures
    by level. `curve` has the accuracy on training-like sequences by step, until it is ENOUGH."""

    seed: int
    levels: dict[int, dict[str, float]]
    curve: dict[int, float] = field(default_factory=dict)

    @property
    def steps_to_solve(self) -> float:
        """The number of steps after which the accuracy was first ENOUGH; infinite if it never was."""
        return min((step for step, accuracy in self.curve.items() if accuracy >= ENOUGH), default=math.inf)

    @property
    def reach(self) -> int:
        return find_reach({level: found["accuracy"] for level, found in self.levels.items()})


@dataclass(frozen=True)
class ProbeOutcome:
    """The outcome of a probe on a model. `chosen` has the accuracy by learning rate, on the examples for choosing it;
    `seeds` are reports on fresh examples. `chances` are the accuracies of blind guesses by level. `baselines` are the
    accuracies of informed guesses by level (`Probe.baseline`); `baseline` is the same on training sequences.
    `state_bytes` is the size of keys, values and recurrent states of one training sequence in float32; `flops` are the
    forward FLOPs of a token, head included; `seconds` is the time of all training and scoring."""

    model: str
    overrides: tuple[str, ...]
    probe: str
    size: str
    settings: Mapping[str, Any]
    level_is: str
    chances: dict[int, float]
    baselines: dict[int, float]
    layers: tuple[str, ...]
    params: int
    state_bytes: int
    flops: float
    baseline: float
    chosen: dict[float, float]
    lr: float
    seeds: tuple[SeedReport, ...]
    trained: tuple[int, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    key: str = field(default="", kw_only=True)

    @property
    def window(self) -> RateWindow | None:
        return find_window(self.chosen, self.baseline)

    @property
    def learned(self) -> bool:
        """Whether, at some level, the mean accuracy over seeds is clearly above that of an informed guess."""
        return any(is_learned(self.accuracy(level)[0], guess) for level, guess in self.baselines.items())

    @property
    def on_edge(self) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried."""
        return self.lr in (min(self.chosen), max(self.chosen))

    @property
    def reaches(self) -> list[int]:
        return [each.reach for each in self.seeds]

    @property
    def reach(self) -> int:
        """The median over seeds of the level reached (the lower one of two)."""
        return median_low(self.reaches)

    @property
    def steps_to_solve(self) -> list[float]:
        """The `SeedReport.steps_to_solve` of each seed. Empty if they were not measured."""
        return [each.steps_to_solve for each in self.seeds if each.curve]

    def accuracy(self, level: int) -> tuple[float, float | None]:
        """Return the mean over seeds of the accuracy at a level, and its standard deviation (None with one seed)."""
        return self.average(level, "accuracy")

    def average(self, level: int, name: str) -> tuple[float, float | None]:
        found = [each.levels[level][name] for each in self.seeds]
        return mean(found), stdev(found) if len(found) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data, with derived figures: `window`, `reach`, means and deviations by level."""
        window = self.window
        found = asdict(self)
        found["chosen"] = [{"lr": lr, "accuracy": self.chosen[lr]} for lr in sorted(self.chosen)]
        names = list(self.seeds[0].levels[min(self.chances)])
        levels = {}
        for level in sorted(self.chances):
            averages = {name: self.average(level, name) for name in names}
            guesses = {"chance": self.chances[level], "baseline": self.baselines[level]}
            levels[level] = {**guesses, "trained": level in self.trained} | {
                name: {"mean": middle, "deviation": deviation} for name, (middle, deviation) in averages.items()
            }
        return found | {
            "learned": self.learned,
            "on_edge": self.on_edge,
            "window": None if window is None else _describe_window(window),
            "reach": self.reach,
            "reaches": self.reaches,
            "steps_to_solve": [None if math.isinf(steps) else steps for steps in self.steps_to_solve],
            "levels": levels,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProbeOutcome:
        """Make an outcome from the data of `to_dict`, read from JSON. Raises KeyError, TypeError or ValueError for
        other data."""
        from pydantic import TypeAdapter

        chosen = {each["lr"]: each["accuracy"] for each in data["chosen"]}
        return TypeAdapter(cls).validate_python({**data, "chosen": chosen})


def name_level(outcome: ProbeOutcome, level: int) -> str:
    """Format a level that was reached; `none` if no level was."""
    return str(level) if level >= min(outcome.chances) else "none"
