"""Measurements in processes of their own: what hangs is stopped, what crashes takes nothing else with it, and what was
measured until then is kept."""

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

from zoo.bench.kernels.timing import Limits, synchronize
from zoo.lazy import torch

ReportRow = dict[str, Any]
"""Figures by name. A row without figures has one of "refused", "left_out" and "raised", with the reason."""

LEAST = 2.0
"""Seconds that are worth a process."""


@dataclass(frozen=True)
class Settings:
    """What all measurements go by. `quick` is small enough for a CPU; `limits` are the device's, once measured."""

    device: str
    quick: bool = False
    seed: int = 0
    limits: Limits | None = None


class Job(NamedTuple):
    """One measurement, a row of the report."""

    name: str
    run: Callable[[], ReportRow]


class CheckPart(NamedTuple):
    """Measurements that share a process, and the most seconds that it may take. `beside` says that others of the same
    name run at the same time, where no speed is measured."""

    name: str
    jobs: Callable[[Settings], list[Job]]
    seconds: float
    beside: bool = False


def run_together(parts: Sequence[CheckPart], settings: Settings, until: float) -> list[ReportRow]:
    """The rows of parts that run at the same time, each in a process of its own."""
    with ThreadPoolExecutor(len(parts)) as pool:
        found = pool.map(lambda part: run_apart(part, settings, until), parts)
        return [row for rows in found for row in rows]


def run_apart(part: CheckPart, settings: Settings, until: float) -> list[ReportRow]:
    """A row for every job of a part, run in a process of its own until the clock (time.monotonic) shows `until`."""
    if until - time.monotonic() < LEAST:
        return [{"name": part.name, "left_out": "the check's time was over"}]
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":  # which imports torch once for all parts, and never touches the device
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
    """The rows that a process told, the names of all its jobs first; those missing are left out, with the reason."""
    if not told:
        return [{"name": name, "raised": f"nothing was measured: {why}"}]
    names, *rows = told
    if rows and len(rows) < len(names) and "lost" in rows[-1]:
        why = f"the device was lost in {rows[-1]['name']!r}"
    found = [{key: value for key, value in row.items() if key != "lost"} for row in rows]
    missing = [{"name": each, "left_out": why} for each in names[len(rows) :]]
    if missing and "exit code" in why:  # no answer is a failure of the one that was asked
        missing[0] = {"name": missing[0]["name"], "raised": why}
    return found + missing


def serve_jobs(pipe: Connection, part: CheckPart, settings: Settings) -> None:
    """Runs a part's jobs and sends their names, then a row as soon as there is one."""
    warnings.simplefilter("ignore")  # what a kernel has to say of itself is not the report's
    os.dup2(2, 1)  # nor what it prints: standard output may be JSON
    if part.beside:
        from torch._inductor import config

        config.compile_threads = 1  # each would start as many processes as there are cores
    jobs = part.jobs(settings)
    pipe.send([job.name for job in jobs])
    for job in jobs:
        row = {"name": job.name, **attempt_job(job.run, settings.device)}
        pipe.send(row)
        if "lost" in row:
            break
    pipe.close()


def attempt_job(run: Callable[[], ReportRow], device: str) -> ReportRow:
    """What a job gives, or the exception that it raises; "lost" says that the device answers no more."""
    try:
        found = run()
        synchronize(device)
        return found
    except Exception as error:  # a kernel may raise anything: that is a finding, and must not lose the others
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
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
