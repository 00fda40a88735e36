"""Search the learning rate of each arm in the same way. Arms are compared fairly at equally searched rates, not at
equal rates.

The search tries a grid of half decades around the config's rate, then a quarter decade to either side of the best rate.
It runs the first seed and compares validation losses. The window of rates that do well is a result too: claims that an
architecture cannot do something often come from a narrow window (arXiv 2508.19029).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import runs
from zoo.errors import ConfigError, ZooError
from zoo.jobs.sweep import Sweep, SweepPoint, find_key, group_by_arm

if TYPE_CHECKING:
    from zoo.jobs.plan import LaunchPlan

KEY = "optim.lr"

GRID = (-4, -2, 0, 2, 4)
"""The rates that are tried first, in quarter decades from the config's rate."""

FURTHER = (2, 4)
"""The rates that are tried once beyond the grid if its lowest or highest rate is the best, in quarter decades."""

TOLERANCE = 0.01
"""A rate is in the window if its loss exceeds the best loss by at most this fraction."""

FEWEST, MOST = len(GRID) + 1, len(GRID) + len(FURTHER) + 1
"""Minimum and maximum number of runs that a search adds to an arm: the grid, and two rates around the best; in the
maximum FURTHER too. The best rate's run is not counted, because it is the run of the arm's first seed."""


@dataclass
class RateSearch:
    """The search of one arm: `ask` gives rates to try, `tell` takes losses. Rates are quarter decades from `start`."""

    start: float
    losses: dict[float, float] = field(default_factory=dict)
    """Losses by quarter decade; infinite for a failed run."""
    extended: bool = False
    refined: bool = False

    def ask(self) -> Sequence[float]:
        """List the quarter decades to try next; empty when the search is over."""
        if not self.losses:
            return list(GRID)
        best = self.best
        if best is None or self.refined:
            return []
        if self.on_edge and not self.extended:
            self.extended = True
            sign = 1 if best == max(self.losses) else -1
            return [best + sign * each for each in FURTHER]
        self.refined = True
        return [each for each in (best - 1, best + 1) if each not in self.losses]

    def tell(self, quarter: float, loss: float | None, status: str | None = None) -> None:
        """Record the loss of a rate. The loss is None if the run ended without one; `status` is the run's."""
        self.losses[quarter] = loss if loss is not None and math.isfinite(loss) else math.inf

    def note(self, quarter: float) -> dict[str, Any]:
        """Make the fields of a rate's job in sweep.json, in addition to the mark that it is part of a search."""
        return {}

    def rate(self, quarter: float) -> str:
        """Write the rate `quarter` quarter decades from the start, for an override."""
        return f"{self.start * 10 ** (quarter / 4):.3g}"

    @property
    def best(self) -> float | None:
        """The quarter decade of the lowest loss; None if every run failed."""
        best = min(self.losses, key=lambda each: self.losses[each])
        return None if self.losses[best] == math.inf else best

    @property
    def on_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest tried, so that a better one may lie beyond."""
        return self.best in (min(self.losses), max(self.losses))

    def window(self) -> tuple[float, float]:
        """Find the interval around the best, in quarter decades, in which the loss stays within 1 % of the best, by
        linear interpolation between the rates tried."""
        assert self.best is not None
        limit = self.losses[self.best] * (1 + TOLERANCE)
        tried = sorted(self.losses)
        at = tried.index(self.best)
        return self._reach(tried[at::-1], limit), self._reach(tried[at:], limit)

    def _reach(self, tried: Sequence[float], limit: float) -> float:
        """Follow the rates away from the best and interpolate where the loss passes the limit."""
        for near, far in itertools.pairwise(tried):
            low, high = self.losses[near], self.losses[far]
            if high > limit:
                return near if high == math.inf else near + (far - near) * (limit - low) / (high - low)
        return tried[-1]

    def to_dict(self) -> dict[str, Any]:
        """Write the result as plain data. `window` is the width, in decades, of the rates within 1 % of the best loss;
        it is a lower bound if `open`: the window reaches the lowest or the highest rate tried."""
        low, high = self.window()
        assert self.best is not None
        return {
            "best": float(self.rate(self.best)),
            "val_loss": self.losses[self.best],
            "edge": self.on_edge,
            "extended": self.extended,
            "window": round((high - low) / 4, 3),
            "open": low == min(self.losses) or high == max(self.losses),
            "losses": {
                self.rate(each): loss if loss < math.inf else None for each, loss in sorted(self.losses.items())
            },
        }


def find_faults(jobs: Sequence[SweepPoint]) -> list[str]:
    """List why rates cannot be searched."""
    stated = {word for each in jobs for word in each.typed if find_key(word) == KEY}
    if len(stated) > 1:
        return [f"search_lr: the sweep varies {KEY} itself, found {', '.join(sorted(stated))} (one of them)"]
    return []


def search_rates(
    plan: LaunchPlan,
    sweep: Sweep,
    jobs: Sequence[SweepPoint],
    launch: Callable[[Sequence[SweepPoint], Mapping[str, Any]], None],
    begin: Callable[[SweepPoint], RateSearch] | None = None,
) -> tuple[list[SweepPoint], dict[str, RateSearch]]:
    """Search the learning rate of every arm, by the grid or by the search that `begin` makes from the job of an arm's
    first seed. All arms' jobs of a round run together. `launch` gets these jobs, and by name each job's fields in
    sweep.json. Returns the jobs of all seeds at the best rates, and the searches. Raises ConfigError if the sweep
    varies the rate itself, and ZooError if every rate of an arm failed."""
    if faults := find_faults(jobs):
        raise ConfigError(*faults)
    arms = group_by_arm(jobs)
    begin = begin or (lambda job: RateSearch(job.planned.settings.optim.lr))
    searches = {name: begin(own[0]) for name, own in arms.items()}
    while tried := [(name, each) for name, search in searches.items() for each in search.ask()]:
        made = {(name, each): at_rate(plan, arms[name][0], searches[name].rate(each)) for name, each in tried}
        launch(list(made.values()), {job.name: searches[name].note(each) for (name, each), job in made.items()})
        for (name, each), job in made.items():
            searches[name].tell(each, *read_outcome(sweep.folder, job))
    if lost := [name for name, search in searches.items() if search.best is None]:
        raise ZooError(f"search_lr: {', '.join(lost)}: every learning rate failed (optim.lr=… starts elsewhere)")
    best = {name: search.rate(search.best or 0) for name, search in searches.items()}
    return [at_rate(plan, job, best[name]) for name in arms for job in arms[name]], searches


def at_rate(plan: LaunchPlan, job: SweepPoint, rate: str) -> SweepPoint:
    """Compose the job with another learning rate."""
    return plan.compose_point([*(each for each in job.typed if find_key(each) != KEY), f"{KEY}={rate}"])


def read_outcome(folder: Path, job: SweepPoint) -> tuple[float | None, str | None]:
    """Read a job's validation loss (None unless the job is done) and its status."""
    result: Mapping[str, Any] = runs.read_result(folder / job.name / runs.RESULT)
    status = result.get("status")
    return result.get("val_loss") if status == "done" else None, status
