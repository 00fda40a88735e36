"""`zoo train -m`: plan a sweep, run its missing jobs, and print one table of all jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoo import report, runs
from zoo.cli.common import say
from zoo.cli.options import flag, option, options
from zoo.cli.outlook import print_match, print_plan
from zoo.errors import ConfigError, did_you_mean, refuse
from zoo.report import rate_table

if TYPE_CHECKING:
    from zoo.jobs.matching import Match
    from zoo.jobs.outlook import Outlook
    from zoo.jobs.plan import LaunchPlan
    from zoo.jobs.sweep import Sweep, SweepPoint


@options()
class SweepOptions:
    """Options of a sweep on the command line. `measure` is None if neither --measure nor --no-measure is given."""

    plan: bool = flag("With -m: print the jobs, their costs, and the smallest difference that the seeds can detect.")
    measure: bool | None = option("With -m: time 3 steps per arm first. [default: on with --plan]", show_default=False)
    match: str | None = option("With -m: equalize a cost across arms: params, flops, kv, data, time.", metavar="BUDGET")
    match_by: str | None = option(
        "The key adjusted to equalize it: d_ff, n_layers, d_model, steps, or any key of the model.", metavar="KEY"
    )
    baseline: str | None = option("The arm that the others are matched to. [default: the first]", metavar="ARM")
    search_lr: bool = flag("With -m: tune the learning rate of each arm first, all in the same way.")
    trials: int | None = option("With --search-lr: rates drawn per arm by optuna; ASHA stops poor ones early.", min=2)
    sigma: str | None = option(
        "With --plan: standard deviation of the per-seed loss difference, or a finished sweep to estimate it from.",
        metavar="STD|SWEEP",
    )
    json: bool = flag("With --plan: print JSON.")

    def refuse_any(self) -> None:
        """Raise ConfigError if an option of a sweep is given to a single run."""
        given = (name for name, value in vars(self).items() if value != getattr(SweepOptions, name))
        refuse(f"{name}: is an option of a sweep (-m)" for name in given)

    def refuse_idle(self) -> None:
        """Raise ConfigError for options without the option that they belong to."""
        if self.trials and not self.search_lr:
            refuse(["trials: are those of a search of learning rates (--search-lr)"])
        if not self.match:
            of_match = (name for name in ("match_by", "baseline") if getattr(self, name))
            refuse(f"{name}: is about what is matched (--match params, say)" for name in of_match)
        if not self.plan:
            idle = (name for name in ("sigma", "json") if getattr(self, name))
            refuse(f"{name}: is an option of a plan (--plan)" for name in idle)


def run_sweep(plan: LaunchPlan, options: SweepOptions) -> None:
    """Run all jobs that are not done, then print one table; exits with 1 if a job failed. With `--plan`, only the plan
    is printed."""
    from zoo.jobs.sweep import Sweep

    options.refuse_idle()
    if options.plan:
        if plan.samples:
            raise ConfigError("plan: the sweeper draws points as it goes (Hydra's basic sweeper has them before)")
        outlook = _look_ahead(plan, options, Sweep.read(plan.find_folder()))
        if options.json:
            print(report.format_json(outlook.to_dict()))
        else:
            print_plan(outlook)
        return
    with plan.hold_folder() as folder:
        if plan.samples:
            _run_sampled(plan, folder)
        else:
            _run_known(plan, options, folder)


def _look_ahead(plan: LaunchPlan, options: SweepOptions, sweep: Sweep) -> Outlook:
    """Compose, deduplicate and price all points, and time their steps if the options ask for it."""
    from zoo.jobs.forecast import Forecaster
    from zoo.jobs.outlook import Outlook
    from zoo.jobs.sweep import drop_duplicates, list_varied

    forecaster = Forecaster(measure=options.plan if options.measure is None else options.measure)
    jobs, dropped = drop_duplicates(plan.list_points())
    matched = _match(plan, options, jobs, sweep) if options.match else None
    jobs = jobs if matched is None else matched.jobs
    done = frozenset(each.name for each in jobs if sweep.read_status(each.name) == "done")
    refused = plan.list_refused()
    if options.plan:
        found = {each.name: forecaster.forecast(each.planned) for each in jobs}
        named = zip(list_varied([each.typed for each in jobs]), jobs, strict=True)
        refused |= {name: [found[each.name].fault or ""] for name, each in named if found[each.name].refused}
        jobs = [each for each in jobs if not found[each.name].refused]
        if not jobs:
            refuse(dict.fromkeys(fault for faults in refused.values() for fault in faults))
    sigma = _read_sigma(options.sigma)
    return Outlook(jobs, forecaster, dropped, refused, done, sigma, matched, _count_searched(options, jobs))


def _count_searched(options: SweepOptions, jobs: Sequence[SweepPoint]) -> tuple[int, int] | None:
    """Count the minimum and maximum runs per arm that a learning-rate search adds; None without a search. The run at
    the best rate is not counted, because the first seed has it anyway."""
    from zoo.jobs.rates import FEWEST, MOST
    from zoo.jobs.trials import check_trials

    if options.trials is None:
        return (FEWEST, MOST) if options.search_lr else None
    check_trials(jobs)
    return options.trials - 1, options.trials - 1


def _match(plan: LaunchPlan, options: SweepOptions, jobs: Sequence[SweepPoint], sweep: Sweep) -> Match:
    """Match the arms in the cost that --match names. A resumed sweep keeps values that were solved by measured seconds,
    because a new measurement would differ. Raises ConfigError for an unknown cost."""
    from zoo.jobs.forecast import Forecaster
    from zoo.jobs.matching import BUDGETS, Matching

    assert options.match is not None
    if options.match not in BUDGETS:
        hint = did_you_mean(options.match, BUDGETS) or f" (one of: {', '.join(BUDGETS)})"
        raise ConfigError(f"match: there is no budget {options.match!r}{hint}")
    asked = Matching(options.match, options.match_by or BUDGETS[options.match], options.baseline)
    return asked.match(plan, jobs, Forecaster(measure=True), sweep.read_solved(asked.budget, asked.by))


def _read_sigma(text: str | None) -> float | None:
    """Read a standard deviation above 0, or estimate it from the runs in a folder. Raises ConfigError for other
    texts."""
    from zoo.jobs.outlook import estimate_sigma

    if text is None:
        return None
    if Path(text).is_dir():
        return estimate_sigma(Path(text))
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise ConfigError(f"sigma: is a deviation in loss or the folder of a sweep, found {text!r} (--sigma 0.01, say)")
    return value


# ---------------------------------------------------------------- the sweep


def _run_known(plan: LaunchPlan, options: SweepOptions, folder: Path) -> None:
    from zoo.jobs.sweep import Sweep, describe_dropped

    sweep = Sweep.read(folder)
    outlook = _look_ahead(plan, options, sweep)
    if line := describe_dropped(outlook.jobs, outlook.dropped):
        say(line)
    sweep.begin(plan.overrides)
    if outlook.match is not None:
        print_match(outlook.match)
        sweep.content["match"] = outlook.match.to_dict()
    jobs = _search_rates(plan, sweep, outlook, options.trials) if options.search_lr else outlook.jobs
    try:
        _launch(plan, sweep, jobs, outlook)
    finally:
        found = runs.results(folder, [each.name for each in jobs])
        _print_results(folder, jobs, found, runs.read_sweep(folder))
    if any(result["status"] != "done" for result in found):
        raise typer.Exit(1)


def _launch(
    plan: LaunchPlan,
    sweep: Sweep,
    jobs: Sequence[SweepPoint],
    outlook: Outlook,
    search: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Add jobs to sweep.json, each with its fields in `search` if there are any, and run the jobs that are not done."""
    from zoo.cli.watching import watch_jobs

    missing = sweep.find_missing(jobs, search)
    sweep.add(jobs, {each.name: outlook.predict(each) for each in jobs}, search)
    if line := sweep.describe(jobs, missing):
        say(line)
    if missing:
        with watch_jobs(sweep.folder, jobs):
            plan.launch(sweep.folder, missing)


def _search_rates(plan: LaunchPlan, sweep: Sweep, outlook: Outlook, trials: int | None) -> list[SweepPoint]:
    """Search the learning rate of each arm, by the grid or by a number of trials; record and print the results, and
    return the jobs at the best rates."""
    from zoo.jobs.pinning import count_workers
    from zoo.jobs.rates import search_rates
    from zoo.jobs.trials import Trials

    def launch(jobs: Sequence[SweepPoint], notes: Mapping[str, Mapping[str, Any]]) -> None:
        _launch(plan, sweep, jobs, outlook, notes)

    def begin(job: SweepPoint) -> Trials:
        return Trials.open(sweep.folder, job, trials or 0, count_workers(plan.jobs[0].cfg.hydra.launcher) or 1)

    jobs, searches = search_rates(plan, sweep, outlook.jobs, launch, begin if trials else None)
    found = {name: search.to_dict() for name, search in searches.items()}
    sweep.content["search"] = found
    sweep.write()
    report.print_tables(
        report.make_table("Learning rates", rate_table.HEADER, rate_table.list_rows(found), right=(1, 2))
    )
    print(rate_table.NOTE)
    return jobs


def _run_sampled(plan: LaunchPlan, folder: Path) -> None:
    """Run the jobs that a sampling sweeper proposes, and list all runs of the folder at the end."""
    from zoo.report.history import find_runs

    try:
        plan.sample(folder)
    finally:
        found = list(find_runs(folder))
        named = ((each.folder.name, " ".join(each.result.get("overrides", ())), each.result) for each in found)
        rows = [[name, overrides, *_figures(result, {})] for name, overrides, result in named]
        _print_rows(folder, rows)
    if any(each.status != "done" for each in found):
        raise typer.Exit(1)


HEADER = ("job", "overrides", "val loss", "params", "seconds", "peak memory", "status")
EXPENDABLE = ("params", "peak memory", "seconds")
"""Columns that are left out on a narrow screen, in this order."""


def _print_rows(folder: Path, rows: list[list[str]]) -> list[list[str]]:
    header, rows = report.fit_columns(HEADER, rows, EXPENDABLE)
    numbers = [at for at, name in enumerate(header) if name in HEADER[2:6]]
    report.print_tables(report.make_table(str(folder), header, rows, right=numbers))
    return rows


def _print_results(
    folder: Path, jobs: Sequence[SweepPoint], found: Sequence[dict[str, Any]], noted: Mapping[str, dict[str, Any]]
) -> None:
    """Print a row for each job, with measured figures and their ratios to the predicted ones, then errors of jobs."""
    from zoo.jobs.sweep import list_varied

    named = zip(jobs, list_varied([each.typed for each in jobs]), found, strict=True)
    rows = [
        [job.name, overrides, *_figures(result, noted.get(job.name, {}).get("predicted", {}))]
        for job, overrides, result in named
    ]
    shown = _print_rows(folder, rows)
    if any("×" in cell for row in shown for cell in row):
        print("× what was predicted")
    for job, result in zip(jobs, found, strict=True):
        if result.get("error"):  # one that was interrupted has no words
            say(f"{job.name}: {result['error']}")


def _figures(result: dict[str, Any], predicted: Mapping[str, Any]) -> list[str]:
    loss, params = result.get("val_loss"), result.get("params")

    def over(name: str, form: Callable[[Any], str]) -> str:
        value, expected = result.get(name), predicted.get(name)
        return "" if value is None else form(value) if not expected else f"{form(value)} ×{value / expected:.2f}"

    return [
        "" if loss is None else f"{loss:.4f}",
        "" if params is None else report.format_count(params),
        over("seconds", "{:.1f}".format),
        over("peak_memory", lambda value: report.format_si(value, "B")),
        result.get("status", ""),
    ]
