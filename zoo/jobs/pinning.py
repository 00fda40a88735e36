"""Give each worker of a sweep cores of its own.

joblib gives a worker as many threads as there are cores for each; the system still moves them all over all cores, away
from what their caches hold and, on a machine of several sockets, from their memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from zoo import disk

SLOTS = ".cores"
"""The folder of a sweep with a file for each share of the cores, which its worker has locked while it lives."""

_held: list[IO[bytes]] = []
"""The lock of this process."""


def count_workers(launcher: Any) -> int | None:
    """Count the workers of joblib's launcher, by its settings; None for another launcher."""
    if not str(launcher.get("_target_", "")).endswith(".JoblibLauncher"):
        return None
    cores, jobs = count_cores(), int(launcher["n_jobs"] or 1)
    return jobs if jobs > 0 else max(cores + 1 + jobs, 1)  # as joblib counts: -1 is all


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin_worker(folder: Path, workers: int) -> set[int] | None:
    """Hold this process to its share of the cores, for the rest of its life; returns them. None where there are fewer
    cores than two workers need, where a worker finds no share free, and on systems that hold no process to cores."""
    if _held or not hasattr(os, "sched_setaffinity") or not 1 < workers <= count_cores():
        return None
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // workers
    (folder / SLOTS).mkdir(exist_ok=True)
    for slot in range(workers):
        file = (folder / SLOTS / str(slot)).open("ab")
        if disk.try_lock(file.fileno()):
            _held.append(file)
            own = set(cores[slot * share : (slot + 1) * share])
            os.sched_setaffinity(0, own)
            return own
        file.close()
    return None
