"""Describe a sweep before it runs: arms, duplicates, refusals, seconds, statistical power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

from zoo.analysis.power import find_smallest_effect
from zoo.analysis.verdict import LEVEL
from zoo.errors import ConfigError
from zoo.jobs.forecast import Forecast, Forecaster
from zoo.jobs.matching import Match
from zoo.jobs.sweep import Job, group_by_arm
from zoo.report.arms import group_arms
from zoo.report.history import collect_runs


@dataclass(frozen=True)
class Outlook:
    """A sweep before it runs. `refused` are points that cannot be trained, by their overrides; `dropped` those that are
    the same as another; `done` the jobs that have ended already."""

    jobs: Sequence[Job]
    forecaster: Forecaster
    dropped: Sequence[tuple[Job, Job]] = ()
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    done: frozenset[str] = frozenset()
    sigma: float | None = None
    """The deviation of a pair's difference in loss, where it is known."""
    match: Match | None = None
    search_runs: tuple[int, int] | None = None
    """The fewest and the most runs of each arm that a search of its learning rate adds; None without one."""

    @property
    def arms(self) -> dict[str, list[Job]]:
        return group_by_arm(self.jobs)

    @property
    def left(self) -> list[Job]:
        """The jobs that are still to run."""
        return [each for each in self.jobs if each.name not in self.done]

    @property
    def seconds(self) -> float | None:
        """The seconds of all jobs that are still to run, one after another; None where some are unknown."""
        return self._add_up(self.left)

    @property
    def search_seconds(self) -> float | None:
        """The seconds of a run of each arm."""
        return self._add_up([jobs[0] for jobs in self.arms.values()])

    def _add_up(self, jobs: Sequence[Job]) -> float | None:
        found = [self.predict(each)["wall_seconds"] for each in jobs]
        return None if None in found else sum(found)

    def forecast(self, job: Job) -> Forecast:
        return self.forecaster.forecast(job.planned)

    def predict(self, job: Job) -> dict[str, Any]:
        """The figures of a job that are predicted, by the names that they have in its result.json."""
        return self.forecast(job).to_dict(job.planned)

    @property
    def seeds(self) -> int:
        """The seeds that all arms have."""
        return len(set.intersection(*({each.seed for each in jobs} for jobs in self.arms.values())))

    def smallest_effect(self, *, corrected: bool = False) -> float | None:
        """The smallest difference from the baseline that these seeds tell, in deviations of a pair's; where
        `corrected`, at the level that Holm holds the first of all arms to."""
        others = max(len(self.arms) - 1, 1)
        return find_smallest_effect(self.seeds, LEVEL / others if corrected else LEVEL)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "arms": [
                {
                    "arm": name,
                    "seeds": [each.seed for each in jobs],
                    "jobs": [each.name for each in jobs],
                    "done": sum(each.name in self.done for each in jobs),
                    **self.predict(jobs[0]),
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
                "smallest_effect": self.smallest_effect(),
                "smallest_effect_corrected": self.smallest_effect(corrected=True),
                "sigma": self.sigma,
            },
        }


def estimate_sigma(folder: Any) -> float:
    """Estimate the deviation of a pair's difference in validation loss from a finished sweep: over all arms against the
    first, each by its degrees of freedom. Raises ConfigError where no arm has two seeds."""
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
