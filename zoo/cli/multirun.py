"""`zoo train -m`: run the jobs of a sweep that are missing, and print one table of them all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from zoo.jobs.plan import LaunchPlan
    from zoo.jobs.sweep import Job


def run_sweep(plan: LaunchPlan) -> None:
    """Run every job that is not done, and print one table at the end. Exits with 1 when one failed."""
    with plan.hold_folder() as folder:
        if plan.samples:
            _run_sampled(plan, folder)
        else:
            _run_known(plan, folder)


def _run_known(plan: LaunchPlan, folder: Path) -> None:
    from zoo import runs
    from zoo.jobs.sweep import Sweep, drop_duplicates

    jobs, dropped = drop_duplicates(plan.list_points())
    for each, first in dropped:
        _say(f"{' '.join(each.typed)}: is the same run as {' '.join(first.typed)}, and runs once")
    sweep = Sweep.read(folder)
    missing = sweep.find_missing(jobs)
    sweep.begin(plan.overrides)
    sweep.add(jobs)
    if line := sweep.describe(jobs, missing):
        _say(line)
    try:
        if missing:
            plan.launch(folder, missing)
    finally:
        found = runs.results(folder, [each.name for each in jobs])
        _print_table(folder, jobs, found)
    if any(result["status"] != "done" for result in found):
        raise typer.Exit(1)


def _run_sampled(plan: LaunchPlan, folder: Path) -> None:
    """Run what a sampling sweeper proposes, and list the runs that are there at the end."""
    from zoo import report
    from zoo.report.history import find_runs

    try:
        plan.sample(folder)
    finally:
        found = list(find_runs(folder))
        rows = [
            [each.folder.name, " ".join(each.result.get("overrides", ())), *_figures(each.result)] for each in found
        ]
        report.print_tables(report.make_table(str(folder), HEADER, rows, right=(2, 3, 4)))
    if any(each.status != "done" for each in found):
        raise typer.Exit(1)


HEADER = ("job", "overrides", "val loss", "params", "seconds", "status")


def _print_table(folder: Path, jobs: Sequence[Job], found: Sequence[dict[str, Any]]) -> None:
    """Print a row for each job, and beside the table why some failed."""
    from zoo import report
    from zoo.jobs.sweep import list_varied

    named = zip(jobs, list_varied([each.typed for each in jobs]), found, strict=True)
    rows = [[job.name, overrides, *_figures(result)] for job, overrides, result in named]
    report.print_tables(report.make_table(str(folder), HEADER, rows, right=(2, 3, 4)))
    for job, result in zip(jobs, found, strict=True):
        if "error" in result:
            _say(f"{job.name}: {result['error']}")


def _figures(result: dict[str, Any]) -> list[str]:
    from zoo import report

    loss, params, seconds = result.get("val_loss"), result.get("params"), result.get("seconds")
    return [
        "" if loss is None else f"{loss:.4f}",
        "" if params is None else report.format_count(params),
        "" if seconds is None else f"{seconds:.1f}",
        result.get("status", ""),
    ]


def _say(line: str) -> None:
    print(line, file=sys.stderr)
