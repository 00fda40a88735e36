"""Print what a sweep or an experiment does while its jobs run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import report
from zoo.cli.common import say
from zoo.cli.outlook import print_match
from zoo.cli.watching import watch_jobs
from zoo.jobs.conducting import SweepObserver
from zoo.report import rate_table

if TYPE_CHECKING:
    from zoo.jobs.matching import Match
    from zoo.jobs.sweep import SweepPoint


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
