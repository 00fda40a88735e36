"""Run measurements in separate processes: a crash or a hang costs one row of the report.

A process that hangs is stopped at its time limit. The rows measured until then are kept.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from zoo.bench.kernels.device_timing import Limits, synchronize
from zoo.lazy import torch

ReportRow = dict[str, Any]
"""A row of the report: figures by name. Without figures it has the reason as "refused", "left_out" or "raised"."""

LEAST = 2.0
"""Least remaining time, in seconds, for which a process is still started."""


@dataclass(frozen=True)
class Settings:
    """The settings of all measurements. `quick` uses sizes for a CPU. `limits` is None until it is measured."""

    device: str
    quick: bool = False
    seed: int = 0
    limits: Limits | None = None

    def share_of_copy(self, rate: float) -> float | None:
        """Return the fraction of the copy bandwidth that is `rate` bytes per second; None without `limits`."""
        return None if self.limits is None else rate / self.limits.copy


class Measurement(NamedTuple):
    """One measurement, which makes a row of the report."""

    name: str
    run: Callable[[], ReportRow]


class CheckPart(NamedTuple):
    """Measurements that share a process, and their time limit in `seconds`. With `beside`, parts of the same name run
    at the same time; such parts measure no speed."""

    name: str
    jobs: Callable[[Settings], list[Measurement]]
    seconds: float
    beside: bool = False


def run_together(parts: Sequence[CheckPart], settings: Settings, until: float) -> list[ReportRow]:
    """Run parts at the same time, each in its own process, and return their rows."""
    with ThreadPoolExecutor(len(parts)) as pool:
        found = pool.map(lambda part: run_apart(part, settings, until), parts)
        return [row for rows in found for row in rows]


def run_apart(part: CheckPart, settings: Settings, until: float) -> list[ReportRow]:
    """Run a part in its own process, at most until time.monotonic() reaches `until`. Return a row for each of the
    part's jobs, or one row with the reason if no job could begin."""
    if until - time.monotonic() < LEAST:
        return [{"name": part.name, "left_out": "the check's time was over"}]
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":  # the server imports torch once for all parts, and never touches the device
        context.set_forkserver_preload(["torch", "zoo.run.layer", "zoo.bench.kernels.checking"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=serve_jobs, args=(theirs, part, settings))
    process.start()
    theirs.close()
    told: list[Any] = []
    why = f"its {part.seconds:.0f} s, or the check's, were over"
    while (left := until - time.monotonic()) > 0 and ours.poll(left):
        try:
            told.append(ours.recv())
        except EOFError:
            process.join(max(until - time.monotonic(), 1))
            why = f"its process ended with exit code {process.exitcode}"
            break
    process.kill()
    process.join()
    return collect_rows(part.name, told, why)


def collect_rows(name: str, told: Sequence[Any], why: str) -> list[ReportRow]:
    """Return the rows that a process sent, and a row with the reason (`why`) for each job without one. The process
    sends the names of all jobs first."""
    if not told:
        return [{"name": name, "raised": f"nothing was measured: {why}"}]
    names, *rows = told
    if rows and len(rows) < len(names) and "lost" in rows[-1]:
        why = f"the device was lost in {rows[-1]['name']!r}"
    found = [{key: value for key, value in row.items() if key != "lost"} for row in rows]
    missing = [{"name": each, "left_out": why} for each in names[len(rows) :]]
    if missing and "exit code" in why:  # the process crashed in this job
        missing[0] = {"name": missing[0]["name"], "raised": why}
    return found + missing


def serve_jobs(pipe: Connection, part: CheckPart, settings: Settings) -> None:
    """Send the names of a part's jobs, then run them and send each row as soon as it is measured."""
    warnings.simplefilter("ignore")  # the kernels' own warnings do not belong in the report
    os.dup2(2, 1)  # a kernel may print, and standard output may be JSON
    if part.beside:
        from torch._inductor import config

        config.compile_threads = 1  # otherwise each part starts a process per core
    jobs = part.jobs(settings)
    pipe.send([job.name for job in jobs])
    for job in jobs:
        row = {"name": job.name, **attempt_job(job.run, settings.device)}
        pipe.send(row)
        if "lost" in row:
            break
    pipe.close()


def attempt_job(run: Callable[[], ReportRow], device: str) -> ReportRow:
    """Run a job and return its row, or a row with its exception. "lost" means that the device does not answer."""
    try:
        found = run()
        synchronize(device)
        return found
    except Exception as error:  # a kernel may raise anything: this is a result, and must not lose the other rows
        row: ReportRow = {"raised": format_error(error)}
    try:
        synchronize(device)
    except RuntimeError:
        row["lost"] = True
    finally:
        gc.collect()
        if device == "cuda" and "lost" not in row:
            torch.cuda.empty_cache()
    return row


def format_error(error: BaseException) -> str:
    """Format an exception as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
