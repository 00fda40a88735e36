"""Tune the learning rate of each arm before its seeds run.

Arms are compared fairly at equally searched rates, not at equal rates. Every arm gets the same number of runs: a grid
of half decades around the config's value, two more beyond the grid if the best value lies on its edge, and two next to
the best value. Search runs have a separate seed (SEED), and are evaluated on rows that no verdict reads: the first half
of the validation split. The arm's seeds are reported on the second half. They run at the minimum of a parabola through
the losses next to the best value (`zoo.analysis.verdict.rate_optimum`); the error of the minimum is part of the
verdict. The window of good values is a result too: claims that an architecture cannot do something often come from a
narrow window (arXiv 2508.19029).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import runs
from zoo.analysis.verdict.rate_optimum import find_good_window, fit_optimum
from zoo.errors import ConfigError, ZooError, refuse
from zoo.grammar.places import look_up
from zoo.jobs.sweep import Sweep, SweepPoint, find_key, group_by_arm

if TYPE_CHECKING:
    from zoo.jobs.plan import LaunchPlan

KEY = "optim.lr"

SEED = 1000
"""The seed of every search run. The seeds of an experiment start at 0."""

PART = "eval_part"
"""The setting that says which half of the validation split a run reads."""

GRID = (-4, -2, 0, 2, 4)
"""The values tried first, in quarter decades from the config's value."""

FURTHER = (2, 4)
"""The values tried once if the grid's lowest or highest value is the best, in quarter decades beyond it."""

FEWEST, MOST = len(GRID) + 2, len(GRID) + len(FURTHER) + 2
"""Minimum and maximum number of search runs per arm: the grid, and two next to the best value. The maximum adds
FURTHER: if one arm needs it, all arms get as many runs."""


@dataclass
class RateSearch:
    """The search of one arm's learning rate, or of another number: `ask` lists places to try, `tell` records losses. A
    place is a number of quarter decades from `start`."""

    start: float
    losses: dict[float, float] = field(default_factory=dict)
    """Losses by place; infinite for a run that failed or diverged."""
    extended: bool = False
    refined: bool = False

    def ask(self) -> Sequence[float]:
        """List the places to try next: the grid, then two at a time. A `finished` search may be asked again, so that it
        has as many runs as other arms."""
        if not self.losses:
            return list(GRID)
        best = self.best
        if best is None:
            return []
        if self.on_edge and not self.extended:
            self.extended = True
            sign = 1 if best == max(self.losses) else -1
            return [best + sign * each for each in FURTHER]
        self.refined = True
        around = (best + sign * distance for distance in itertools.count(1) for sign in (-1, 1))
        return list(itertools.islice((each for each in around if each not in self.losses), 2))

    @property
    def finished(self) -> bool:
        """Whether the search needs no further runs."""
        return bool(self.losses) and (self.best is None or self.refined)

    def tell(self, place: float, loss: float | None, status: str | None = None) -> None:
        """Record the loss at a place, None if the run ended without one; `status` is the run's status."""
        self.losses[place] = loss if loss is not None and math.isfinite(loss) else math.inf

    def note(self, place: float) -> dict[str, Any]:
        """Return further fields of a search run for sweep.json."""
        return {}

    def rate(self, place: float) -> str:
        """Format the value at a place, for an override."""
        return f"{self.start * 10 ** (place / 4):.3g}"

    @property
    def best(self) -> float | None:
        """The place of the lowest loss; None if every run failed."""
        best = min(self.losses, key=lambda each: self.losses[each])
        return None if self.losses[best] == math.inf else best

    @property
    def on_edge(self) -> bool:
        """Whether the best place is the lowest or the highest tried, so that a better one may lie beyond."""
        return self.best in (min(self.losses), max(self.losses))

    @property
    def decades(self) -> dict[float, float]:
        """The losses by distance from the start, in decades."""
        return {place / 4: loss for place, loss in self.losses.items()}

    def choose(self) -> str:
        """Format the value at the minimum of the fitted parabola, or the best value tried if there is no minimum."""
        return self.rate(4 * fit_optimum(self.decades, noise=0.0).at)

    def to_dict(self) -> dict[str, Any]:
        """Write the result as plain data: the chosen value (`best`), the lowest loss, and all losses. `window` is the
        width, in decades, of the values within TOLERANCE of the best loss. If the window reaches the lowest or the
        highest value tried, it is `open`, and its width a lower bound."""
        assert self.best is not None
        window = find_good_window(self.decades)
        return {
            "best": float(self.choose()),
            "val_loss": self.losses[self.best],
            "edge": self.on_edge,
            "extended": self.extended,
            "window": round(window.width, 3),
            "open": window.open,
            "losses": {
                self.rate(each): loss if loss < math.inf else None for each, loss in sorted(self.losses.items())
            },
        }


def search_rates(
    plan: LaunchPlan,
    sweep: Sweep,
    jobs: Sequence[SweepPoint],
    launch: Callable[[Sequence[SweepPoint], Mapping[str, Any]], None],
    begin: Callable[[SweepPoint], RateSearch] | None = None,
    key: str = KEY,
    proxy: Sequence[str] = (),
) -> tuple[list[SweepPoint], dict[str, RateSearch]]:
    """Search the learning rate of every arm, or another number by its `key`. `begin` makes an arm's search from the job
    of its first seed; the default is a grid. The overrides `proxy` make the models narrower. All arms' jobs of a round
    run together: `launch` is called with them, and with their fields in sweep.json by job name. Returns the jobs of all
    seeds at the chosen values, and the searches by arm. Raises ConfigError if the sweep varies the rate itself, and
    ZooError if every value of an arm failed."""
    stated = {word for each in jobs for word in each.typed if find_key(word) == KEY}
    if key == KEY and len(stated) > 1:
        found = f"the sweep varies {KEY} itself, found {', '.join(sorted(stated))}"
        raise ConfigError(f"search_lr: {found} (one of them)")
    arms = group_by_arm(jobs)
    begin = begin or (lambda job: RateSearch(read_number(job, key)))
    searches = {name: begin(at_search(plan, own[0])) for name, own in arms.items()}
    while not all(each.finished for each in searches.values()):
        tried = [(name, each) for name, search in searches.items() for each in search.ask()]
        if not tried:
            break
        made = {
            (name, each): at_search(plan, arms[name][0], searches[name].rate(each), key, proxy) for name, each in tried
        }
        launch(list(made.values()), {job.name: searches[name].note(each) for (name, each), job in made.items()})
        for (name, each), job in made.items():
            searches[name].tell(each, *read_outcome(sweep.folder, job))
    if lost := [name for name, search in searches.items() if search.best is None]:
        raise ZooError(f"search: {', '.join(lost)}: every value of {key} failed ({key}=… starts elsewhere)")
    return [at_rate(plan, job, searches[name].choose(), key) for name in arms for job in arms[name]], searches


def read_number(job: SweepPoint, key: str) -> float:
    """Read the number that a job's config has at a key. Raises ConfigError if it is no positive number."""
    value = look_up(job.planned.config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(
            f"tune: {key} is {value!r} there, and multiples of it are tried (a key whose value is above 0)"
        )
    return value


def at_search(
    plan: LaunchPlan, job: SweepPoint, rate: str | None = None, key: str = KEY, proxy: Sequence[str] = ()
) -> SweepPoint:
    """Compose a search run of a job: with SEED and the tuning rows, at `rate` (by default the job's own), and with the
    `proxy` overrides."""
    own = [*proxy, *([] if rate is None else [f"{key}={rate}"]), f"seed={SEED}", f"{PART}=tuning"]
    set_here = set(map(find_key, own))
    return plan.compose_point([*(each for each in job.typed if find_key(each) not in set_here), *own], job.arm)


def plan_proxies(plan: LaunchPlan, jobs: Sequence[SweepPoint], proxy: Sequence[str]) -> list[SweepPoint]:
    """Compose each arm's proxy: a job of a narrower model, on which the arm's learning rate is searched. Under muP its
    best rate is the arm's too (Yang et al., 2022). Raises ConfigError for overrides of anything but the model, and for
    arms to which the rate would not transfer."""
    refuse(
        f"tune.proxy: {each} is no size of the model, and changes the best rate (model.d_model=64, say)"
        for each in proxy
        if not find_key(each).startswith("model.")
    )
    firsts = {name: own[0] for name, own in group_by_arm(jobs).items()}
    made = {name: at_search(plan, job, proxy=proxy) for name, job in firsts.items()}
    found = {name: _find_transfer_fault(job, made[name]) for name, job in firsts.items()}
    refuse(f"tune.proxy: {name} {fault}" for name, fault in found.items() if fault)
    return list(made.values())


def _find_transfer_fault(job: SweepPoint, narrow: SweepPoint) -> str | None:
    """Describe why the narrow model's best rate does not transfer to the job; None if it does."""
    (wide, settings), proxy = (job.planned.spec, job.planned.settings), narrow.planned.spec
    if settings.parametrisation.kind == "standard":
        return "does not train under muP, so that its best rate is not a narrow model's (parametrisation=mup)"
    if proxy.d_model >= wide.d_model:
        return f"is {wide.d_model} wide, and its proxy {proxy.d_model} (a lower model.d_model)"
    if proxy.n_layers != wide.n_layers and settings.parametrisation.kind == "mup":
        return f"has {wide.n_layers} layers, and its proxy {proxy.n_layers} (parametrisation=completep, or as many)"
    return None


def at_rate(plan: LaunchPlan, job: SweepPoint, rate: str, key: str = KEY) -> SweepPoint:
    """Compose a job at the chosen value. It is evaluated on the rows that the search has not read."""
    kept = (each for each in job.typed if find_key(each) not in (key, PART))
    return plan.compose_point([*kept, f"{key}={rate}", f"{PART}=reporting"], job.arm)


def read_outcome(folder: Path, job: SweepPoint) -> tuple[float | None, str | None]:
    """Read a job's validation loss (None unless the job is done) and its status."""
    result: Mapping[str, Any] = runs.read_result(folder / job.name / runs.RESULT)
    status = result.get("status")
    return result.get("val_loss") if status == "done" else None, status
