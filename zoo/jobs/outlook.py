"""Describe a sweep before it runs: arms, duplicates, refusals, seconds, statistical power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from zoo.analysis.verdict.power import LEVEL, find_smallest_effect
from zoo.errors import ConfigError
from zoo.jobs.forecast import Forecast, Forecaster, price_elementwise
from zoo.jobs.matching import Match
from zoo.jobs.sweep import SweepPoint, group_by_arm
from zoo.report.arms import group_arms
from zoo.report.history import collect_runs


@dataclass(frozen=True)
class Outlook:
    """A sweep before it runs. `refused` maps the overrides of an invalid point to its faults; `dropped` pairs each
    duplicate point with the job that it equals; `done` has the names of the finished jobs."""

    jobs: Sequence[SweepPoint]
    forecaster: Forecaster
    dropped: Sequence[tuple[SweepPoint, SweepPoint]] = ()
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    done: frozenset[str] = frozenset()
    sigma: float | None = None
    """The standard deviation of the loss difference between two arms at the same seed, if known."""
    match: Match | None = None
    search_runs: tuple[int, int] | None = None
    """The minimum and maximum runs per arm that a learning-rate search adds; None without a search."""
    expected: int = 0
    """The number of verdicts that an experiment expects; 0 if it expects none, and for a sweep."""
    proxies: Sequence[SweepPoint] = ()
    """A job of each arm's narrower model, on which its learning rate is searched; empty if the arms' own models are
    used."""

    @property
    def arms(self) -> dict[str, list[SweepPoint]]:
        return group_by_arm(self.jobs)

    @property
    def left(self) -> list[SweepPoint]:
        """The jobs that are not done."""
        return [each for each in self.jobs if each.name not in self.done]

    @property
    def seconds(self) -> float | None:
        """The predicted seconds of all jobs that are not done, added up; None if some are unknown."""
        return self._add_up(self.left)

    @property
    def search_seconds(self) -> float | None:
        """The seconds of one search run per arm, added up over the arms; None if some are unknown."""
        return self._add_up(self.proxies or [jobs[0] for jobs in self.arms.values()])

    def _add_up(self, jobs: Sequence[SweepPoint]) -> float | None:
        found = [self.predict(each)["wall_seconds"] for each in jobs]
        return None if None in found else sum(found)

    def forecast(self, job: SweepPoint) -> Forecast:
        return self.forecaster.forecast(job.planned)

    def predict(self, job: SweepPoint) -> dict[str, Any]:
        """Predict the figures of a job (FLOPs, seconds, memory), keyed as in its result.json."""
        return self.forecast(job).to_dict(job.planned)

    @property
    def seeds(self) -> int:
        """The number of seeds that all arms share."""
        return len(set.intersection(*({each.seed for each in jobs} for jobs in self.arms.values())))

    @property
    def comparisons(self) -> int:
        """The number of comparisons over which p-values will be corrected: the expected verdicts, or the arms other
        than the baseline."""
        return self.expected or max(len(self.arms) - 1, 1)

    def smallest_effect(self, *, corrected: bool = False) -> float | None:
        """Find the smallest difference that this number of seeds can detect, in standard deviations of a pair's
        difference; None for fewer than two seeds. `corrected` uses Holm's strictest level, LEVEL / comparisons."""
        return find_smallest_effect(self.seeds, LEVEL / self.comparisons if corrected else LEVEL)

    def to_dict(self) -> dict[str, Any]:
        """Write the outlook as plain data."""
        return {
            "arms": [
                {
                    "arm": name,
                    "seeds": [each.seed for each in jobs],
                    "jobs": [each.name for each in jobs],
                    "done": sum(each.name in self.done for each in jobs),
                    **self.predict(jobs[0]),
                    "elementwise": price_elementwise(jobs[0].planned),
                    "note": self.forecast(jobs[0]).fault,
                }
                for name, jobs in self.arms.items()
            ],
            **({} if self.match is None else {"match": self.match.to_dict()}),
            "duplicates": [{"overrides": list(each.typed), "job": first.name} for each, first in self.dropped],
            "refused": [{"overrides": name, "faults": list(why)} for name, why in self.refused.items()],
            "seconds": self.seconds,
            **({"search_runs": self.search_runs, "search_seconds": self.search_seconds} if self.search_runs else {}),
            "power": {
                "seeds": self.seeds,
                "comparisons": self.comparisons,
                "smallest_effect": self.smallest_effect(),
                "smallest_effect_corrected": self.smallest_effect(corrected=True),
                "sigma": self.sigma,
            },
        }


def estimate_sigma(folder: Path) -> float:
    """Estimate the standard deviation of the validation-loss difference of a pair (two arms, same seed) from a finished
    sweep: pooled over the arms, each against the first. Raises ConfigError if no arm shares two seeds with the first.
    """
    arms, _ = group_arms(collect_runs([folder]))
    values = [each.values("val_loss") for each in arms]
    squares, freedom = 0.0, 0
    for each in values[1:]:
        pairs = [each[seed] - values[0][seed] for seed in sorted(each.keys() & values[0].keys())]
        if len(pairs) > 1:
            squares, freedom = squares + stdev(pairs) ** 2 * (len(pairs) - 1), freedom + len(pairs) - 1
    if not freedom:
        raise ConfigError(f"sigma: {folder} has no two arms that share two seeds (a number would do: --sigma 0.01)")
    return (squares / freedom) ** 0.5
