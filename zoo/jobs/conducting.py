"""Conduct a sweep or an experiment: match its arms, tune them, run all jobs that have not ended."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, name_options, refuse
from zoo.jobs.forecast import MATCHED_STEPS, Forecaster
from zoo.jobs.matching import BUDGETS, Match, Matching, choose_dimension
from zoo.jobs.outlook import Outlook
from zoo.jobs.pinning import count_workers
from zoo.jobs.plan import LaunchPlan
from zoo.jobs.rates import FEWEST, MOST, RateSearch, plan_proxies, read_number, search_rates
from zoo.jobs.sweep import Sweep, SweepPoint, describe_dropped, drop_duplicates, list_varied


@dataclass(frozen=True)
class SweepDesign:
    """Settings of a sweep: how arms are matched and tuned before their seeds run.

    `match` is the cost in which arms are matched, `match_by` the dimension solved for it, `baseline` the arm to match
    (by default the first). `search_lr` tunes learning rates, by `trials` runs (None: on a grid).
    """

    match: str | None = None
    match_by: str | None = None
    baseline: str | None = None
    search_lr: bool = False
    further: Sequence[str] = ()
    """Config keys of numbers that are searched after the learning rate, one after another."""
    proxy: Sequence[str] = ()
    """Overrides that make an arm's model narrower for its search, under muP."""
    trials: int | None = None
    sigma: float | None = None
    """The standard deviation of the loss difference of a pair (two arms, same seed), for a plan's power analysis."""
    measure: bool = False
    """Whether to time some steps of each arm first."""
    expected: int = 0
    """The number of verdicts that an experiment expects."""


class SweepObserver:
    """Observes the events of a sweep. This base class does nothing."""

    jobs: Sequence[SweepPoint] = ()
    """The jobs started last; when the sweep has ended, those of the arms' seeds."""

    def say(self, line: str) -> None:
        """Called with a line about the jobs."""

    def show_match(self, match: Match) -> None:
        """Called when the arms have been matched."""

    def show_searches(self, searches: Mapping[str, Mapping[str, Any]]) -> None:
        """Called when the learning rates have been searched (`RateSearch.to_dict`, by arm)."""

    def watch(self, folder: Path, jobs: Sequence[SweepPoint]) -> AbstractContextManager[Any]:
        """Return a context manager that is open while `jobs` run in `folder`."""
        return nullcontext()


def look_ahead(plan: LaunchPlan, design: SweepDesign, sweep: Sweep, *, only_plan: bool = False) -> Outlook:
    """Return the outlook of a sweep: compose, deduplicate, match and price all points; time their steps if the design
    says so. With `only_plan`, points that do not fit a device are listed as refused. Raises ConfigError if all points
    are refused."""
    forecaster = Forecaster(measure=design.measure)
    jobs, dropped = drop_duplicates(plan.list_points())
    matched = _match(plan, design, jobs, sweep) if design.match else None
    jobs = jobs if matched is None else matched.jobs
    done = frozenset(each.name for each in jobs if sweep.read_status(each.name) == "done")
    for key in design.further:
        read_number(jobs[0], key)
    refused = plan.list_refused()
    if only_plan:
        found = {each.name: forecaster.forecast(each.planned) for each in jobs}
        named = zip(list_varied([each.typed for each in jobs]), jobs, strict=True)
        refused |= {name: [found[each.name].fault or ""] for name, each in named if found[each.name].refused}
        jobs = [each for each in jobs if not found[each.name].refused]
        if not jobs:
            refuse(dict.fromkeys(fault for faults in refused.values() for fault in faults))
    searched = _count_searched(design, jobs)
    proxies = plan_proxies(plan, jobs, design.proxy) if design.proxy else []
    return Outlook(jobs, forecaster, dropped, refused, done, design.sigma, matched, searched, design.expected, proxies)


def _count_searched(design: SweepDesign, jobs: Sequence[SweepPoint]) -> tuple[int, int] | None:
    """Count the minimum and maximum runs per arm that a search of learning rates adds; None without a search."""
    if design.trials is None:
        count = 1 + len(design.further)
        return (count * FEWEST, count * MOST) if design.search_lr else None
    from zoo.jobs.trials import check_trials

    check_trials(jobs)
    return design.trials, design.trials


def _match(plan: LaunchPlan, design: SweepDesign, jobs: Sequence[SweepPoint], sweep: Sweep) -> Match:
    """Match the arms in the cost that the design names. A resumed sweep keeps values that were solved by measured
    seconds, because a new measurement would differ. Raises ConfigError for an unknown cost."""
    assert design.match is not None
    if design.match not in BUDGETS:
        hint = name_options(design.match, BUDGETS)
        raise ConfigError(f"match: there is no budget {design.match!r}{hint}")
    by = design.match_by or choose_dimension(plan, jobs, design.match, design.baseline)
    asked = Matching(design.match, by, design.baseline)
    forecaster = Forecaster(measure=True, steps=MATCHED_STEPS)
    return asked.match(plan, jobs, forecaster, sweep.read_solved(asked.budget, asked.by))


def conduct(plan: LaunchPlan, design: SweepDesign, folder: Path, observer: SweepObserver) -> list[SweepPoint]:
    """Match and tune the arms as the design says, and run all jobs that have not ended. Returns the jobs of the arms'
    seeds."""
    sweep = Sweep.read(folder)
    outlook = look_ahead(plan, design, sweep)
    if line := describe_dropped(outlook.jobs, outlook.dropped):
        observer.say(line)
    sweep.begin(plan.overrides)
    if outlook.match is not None:
        observer.show_match(outlook.match)
        sweep.content["match"] = outlook.match.to_dict()
    launch = functools.partial(_launch, plan, sweep, outlook, observer)
    jobs = _search(plan, sweep, outlook, design, launch, observer) if design.search_lr else list(outlook.jobs)
    launch(jobs)
    return jobs


def _launch(
    plan: LaunchPlan,
    sweep: Sweep,
    outlook: Outlook,
    observer: SweepObserver,
    jobs: Sequence[SweepPoint],
    search: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Add jobs to sweep.json, with their fields in `search` by job name, and run the jobs that have not ended."""
    observer.jobs = jobs
    missing = sweep.find_missing(jobs, search)
    sweep.add(jobs, {each.name: outlook.predict(each) for each in jobs}, search)
    if line := sweep.describe(jobs, missing):
        observer.say(line)
    if missing:
        with observer.watch(sweep.folder, jobs):
            plan.launch(sweep.folder, missing)


def _search(
    plan: LaunchPlan, sweep: Sweep, outlook: Outlook, design: SweepDesign, launch: Any, observer: SweepObserver
) -> list[SweepPoint]:
    """Search the learning rate of each arm, on a grid or by trials, then the design's further numbers at the rates
    found. Records the results in sweep.json, and returns the jobs at the chosen values."""
    trials = design.trials

    def begin(job: SweepPoint) -> RateSearch:
        from zoo.jobs.trials import Trials

        return Trials.open(sweep.folder, job, trials or 0, count_workers(plan.jobs[0].cfg.hydra.launcher) or 1)

    jobs, searches = search_rates(plan, sweep, outlook.jobs, launch, begin if trials else None, proxy=design.proxy)
    of_proxy = {"width": outlook.proxies[0].planned.spec.d_model} if outlook.proxies else {}
    found = {name: search.to_dict() | of_proxy for name, search in searches.items()}
    for key in design.further:
        jobs, searches = search_rates(plan, sweep, jobs, launch, key=key)
        for name, search in searches.items():
            found[name].setdefault("further", {})[key] = search.to_dict()
    sweep.content["search"] = found
    sweep.write()
    observer.show_searches(found)
    return jobs
