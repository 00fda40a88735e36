"""`zoo train -m`: plan a sweep, run its missing jobs, and print one table of all jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from zoo import report, runs
from zoo.cli.common import say
from zoo.cli.options import flag, option, options
from zoo.cli.outlook import print_plan
from zoo.errors import ConfigError, refuse

if TYPE_CHECKING:
    from zoo.jobs.conducting import SweepDesign
    from zoo.jobs.plan import LaunchPlan
    from zoo.jobs.sweep import SweepPoint


@options()
class SweepOptions:
    """Options of a sweep on the command line. `measure` is None if neither --measure nor --no-measure is given."""

    plan: bool = flag("With -m: print the jobs, their costs, and the minimum detectable difference.")
    measure: bool | None = option("With -m: time 3 steps per arm first. [default: on with --plan]", show_default=False)
    match: str | None = option(
        "With -m: make a cost equal in all arms: params, active, non_embedding, flops, kv, data, time.",
        metavar="BUDGET",
    )
    match_by: str | None = option(
        "With --match: the key that is adjusted, any model key or steps. [default: d_ff; kv: n_kv_heads or "
        "n_layers; data and time: steps]",
        metavar="KEY",
    )
    baseline: str | None = option(
        "With --match: the arm that the others are matched to. [default: the first]", metavar="ARM"
    )
    search_lr: bool = flag("With -m: tune the learning rate of each arm first, all in the same way.")
    trials: int | None = option(
        "With --search-lr: rates drawn per arm by optuna; ASHA stops poor ones early. [default: a grid]", min=2
    )
    sigma: str | None = option(
        "With --plan: standard deviation of the paired (same-seed) loss difference between two arms, or a finished "
        "sweep to estimate it from. [default: unknown: differences are given in σ]",
        metavar="STD|SWEEP",
    )
    json: bool = flag("With --plan: print JSON.")

    def design(self) -> SweepDesign:
        """Make the SweepDesign of these options. Steps are timed if --measure is given; with --plan this is the
        default."""
        from zoo.jobs.conducting import SweepDesign

        return SweepDesign(
            match=self.match,
            match_by=self.match_by,
            baseline=self.baseline,
            search_lr=self.search_lr,
            trials=self.trials,
            sigma=_read_sigma(self.sigma),
            measure=self.plan if self.measure is None else self.measure,
        )

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
    """Run all jobs that have not ended, then print one table; exits with 1 if a job failed. With `--plan`, only the
    plan is printed."""
    from zoo.jobs.conducting import look_ahead
    from zoo.jobs.sweep import Sweep

    options.refuse_idle()
    if options.plan:
        if plan.samples:
            raise ConfigError("plan: the sweeper draws points as it goes (Hydra's basic sweeper has them before)")
        outlook = look_ahead(plan, options.design(), Sweep.read(plan.find_folder()), only_plan=True)
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
    from zoo.cli.observing import PrintingObserver
    from zoo.jobs.conducting import conduct
    from zoo.report.arms import ENDED

    observer = PrintingObserver()
    try:
        conduct(plan, options.design(), folder, observer)
    finally:
        jobs = observer.jobs
        found = runs.results(folder, [each.name for each in jobs])
        if jobs:
            _print_results(folder, jobs, found, runs.read_sweep(folder))
    if any(result["status"] not in ENDED for result in found):
        raise typer.Exit(1)


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
