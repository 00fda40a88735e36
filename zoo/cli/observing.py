"""Print what a sweep or an experiment does while its jobs run: on a terminal a table of arms × seeds with the progress
of each job, elsewhere a line for each job that ends."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import report, runs
from zoo.cli.common import say
from zoo.cli.outlook import print_match
from zoo.jobs.conducting import SweepObserver
from zoo.report import rate_table
from zoo.units import format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.jobs.matching import Match
    from zoo.jobs.sweep import SweepPoint

TAIL = 4096
"""Bytes read from the end of a run's metrics to find the last line."""


@contextmanager
def naming_interrupts(what: str, folder: Path) -> Iterator[None]:
    """Print, at Ctrl-C or SIGTERM, what was interrupted and how to resume it; the run itself reports only its own
    end."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"{what}: interrupted; the same command goes on with it (what has ended is kept in {folder})")
        raise


class PrintingObserver(SweepObserver):
    """Print lines, tables of matched costs and of learning rates, and a progress line while jobs run."""

    def say(self, line: str) -> None:
        say(line)

    def show_match(self, match: Match) -> None:
        print_match(match)

    def show_searches(self, searches: Mapping[str, Mapping[str, Any]]) -> None:
        rows = rate_table.list_rows(searches)
        report.print_tables(report.make_table("Learning rates", rate_table.HEADER, rows, right=(1, 2, 3)))
        print(rate_table.NOTE)

    def watch(self, folder: Path, jobs: Sequence[SweepPoint]) -> AbstractContextManager[Any]:
        return watch_jobs(folder, jobs)


# ---------------------------------------------------------------- the jobs


@contextmanager
def watch_jobs(folder: Path, jobs: Sequence[SweepPoint], console: Console | None = None) -> Iterator[None]:
    """Show the jobs until the block ends, in place of the jobs' own progress bars. If the console is no terminal, the
    jobs print their own lines, and each job's end is printed as a line."""
    from rich.live import Live

    from zoo.report.console import make_console
    from zoo.report.progress import WATCHED

    console = console or make_console(stderr=True)
    table = JobTable(folder, jobs)
    if not console.is_terminal:
        with _saying_ends(table, console):
            yield
        return
    os.environ[WATCHED] = "1"  # inherited by a launcher's workers
    try:
        with Live(get_renderable=table.render, console=console, refresh_per_second=1):
            yield
    finally:
        del os.environ[WATCHED]


@contextmanager
def _saying_ends(table: JobTable, console: Console) -> Iterator[None]:
    over = threading.Event()

    def follow() -> None:
        waits = True
        while waits:
            waits = not over.wait(1.0)
            for line in table.list_new_ends():
                console.print(line, soft_wrap=True)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


class JobTable:
    """A live table: a row per arm, a column per seed or searched rate, and in each cell the progress or outcome of the
    job."""

    def __init__(self, folder: Path, jobs: Sequence[SweepPoint]) -> None:
        from zoo.jobs.sweep import group_by_arm, list_varied

        self.folder, self.jobs = folder, jobs
        self.arms = group_by_arm(jobs)
        self.columns: dict[str, str] = {}
        """The column of each job, by its name: its seed, or in a search the value that is tried."""
        for own in self.arms.values():
            alone = len({each.seed for each in own}) == len(own)
            tried = list_varied([each.typed for each in own])
            self.columns |= {
                each.name: f"seed {each.seed}" if alone else text for each, text in zip(own, tried, strict=True)
            }
        self.ended: dict[str, str] = {}
        """The cells of finished jobs, whose folders are not read again."""
        self.told = {job.name for job in jobs if self.has_ended(job)}
        """The names of the jobs whose ends were printed, or came before the table was made."""
        self.before, self.began = len(self.told), time.monotonic()

    def has_ended(self, job: SweepPoint) -> bool:
        """Tell whether a job has ended, successfully or not, and has not been started again."""
        result = self.folder / job.name / runs.RESULT
        return result.is_file() and not is_newer(result.with_name(runs.METRICS), result)

    def list_new_ends(self) -> list[str]:
        """Write a line for each job that ended since the last call: `run 7 of 10: qk-norm, seed 1: 2.0606; about 3.2
        min left`."""
        lines = []
        for arm, jobs in self.arms.items():
            for job in (each for each in jobs if each.name not in self.told and self.has_ended(each)):
                self.told.add(job.name)
                lines.append(f"{self.count()}: {arm}, {self.columns[job.name]}: {self.describe(job)}{self._estimate()}")
        return lines

    def count(self) -> str:
        """Count the jobs that have ended: `run 7 of 10`."""
        return f"run {len(self.told)} of {len(self.jobs)}"

    def _estimate(self) -> str:
        """Estimate the time left from the jobs that have ended so far; empty if none has ended, or none is left."""
        ended, left = len(self.told) - self.before, len(self.jobs) - len(self.told)
        seconds = (time.monotonic() - self.began) / max(ended, 1) * left
        return f"; about {format_seconds(seconds)} left" if ended and left else ""

    def render(self) -> Any:
        """Make the table with the present state of all jobs."""
        rows, columns = [], list(dict.fromkeys(self.columns.values()))
        for name, jobs in self.arms.items():
            own = {self.columns[each.name]: each for each in jobs}
            rows.append([name, *(self.describe(own[column]) if column in own else "" for column in columns)])
        header = ("arm", *columns)
        self.told |= {job.name for job in self.jobs if job.name not in self.told and self.has_ended(job)}
        return report.make_table(f"{self.count()}{self._estimate()}", header, rows, right=range(1, len(header)))

    def describe(self, job: SweepPoint) -> str:
        """Describe a job: its validation loss if done, its progress and loss, or its status.

        The run's lock is not tested: holding it, even briefly, would stop a job that starts at that moment.
        """
        if job.name in self.ended:
            return self.ended[job.name]
        folder = self.folder / job.name
        result = runs.read_result(folder / runs.RESULT)
        if result.get("status") == "done":
            loss = result.get("val_loss")
            return self.ended.setdefault(job.name, "done" if loss is None else f"{loss:.4f}")
        if result and not is_newer(folder / runs.METRICS, folder / runs.RESULT):
            return str(result.get("status"))
        return self._progress(job, folder) if folder.is_dir() else "waits"

    @staticmethod
    def _progress(job: SweepPoint, folder: Path) -> str:
        line = read_last_line(folder)
        if line is None:
            return "starts"
        loss = line.get("loss", line.get("val_loss"))
        share = f"{line['step'] / job.planned.settings.steps:.0%}"
        return share if loss is None else f"{share} {loss:.3f}"


def is_newer(file: Path, other: Path) -> bool:
    """Tell whether a file is newer than another: metrics newer than the result mean that a failed run has restarted."""
    try:
        return file.stat().st_mtime_ns > other.stat().st_mtime_ns
    except OSError:
        return False


def read_last_line(folder: Path) -> dict[str, Any] | None:
    """Read the last complete line of a run's metrics; None if there is none yet."""
    try:
        with (folder / runs.METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        return json.loads(whole)
    except (OSError, ValueError):
        return None
