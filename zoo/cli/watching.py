"""Show the jobs of a sweep while they run, on a terminal: a table of arms × seeds with the progress of each job."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import report, runs

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.jobs.sweep import SweepPoint

TAIL = 4096
"""Bytes read from the end of a run's metrics to find the last line."""


@contextmanager
def watch_jobs(folder: Path, jobs: Sequence[SweepPoint], console: Console | None = None) -> Iterator[None]:
    """Show the jobs until the block ends, in place of the jobs' own progress bars. If the console is no terminal,
    nothing is shown, and the jobs print their own lines."""
    from rich.live import Live

    from zoo.report.console import make_console
    from zoo.report.progress import WATCHED

    console = console or make_console(stderr=True)
    if not console.is_terminal:
        yield
        return
    table = JobTable(folder, jobs)
    os.environ[WATCHED] = "1"  # inherited by a launcher's workers
    try:
        with Live(get_renderable=table.render, console=console, refresh_per_second=1):
            yield
    finally:
        del os.environ[WATCHED]


class JobTable:
    """A live table: a row per arm, a column per seed, and in each cell the progress or outcome of the job."""

    def __init__(self, folder: Path, jobs: Sequence[SweepPoint]) -> None:
        from zoo.jobs.sweep import group_by_arm

        self.folder = folder
        self.arms = group_by_arm(jobs)
        self.seeds = sorted({each.seed for each in jobs})
        self.ended: dict[str, str] = {}
        """The cells of finished jobs, whose folders are not read again."""

    def render(self) -> Any:
        """Make the table with the present state of all jobs."""
        rows = []
        for name, jobs in self.arms.items():
            by_seed = {each.seed: each for each in jobs}
            rows.append([name, *(self.describe(by_seed[seed]) if seed in by_seed else "" for seed in self.seeds)])
        header = ("arm", *(f"seed {seed}" for seed in self.seeds))
        return report.make_table("", header, rows, right=range(1, len(header)))

    def describe(self, job: SweepPoint) -> str:
        """Describe a job: its validation loss if done, its progress and loss, or its status.

        The run's lock is not tested, since a job that starts at that moment would find it taken.
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
