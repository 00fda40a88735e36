"""Give each worker of a sweep cores of its own, and a GPU where there are several.

joblib gives a worker as many threads as there are cores for each; the system still moves them all over all cores, away
from what their caches hold and, on a machine of several sockets, from their memory. Of GPUs every worker sees all, and
all would train on the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from zoo import disk

SLOTS = ".slots"
"""The folder of a sweep with a file for each worker that runs at once, which it has locked while it lives."""

DEVICES = "CUDA_VISIBLE_DEVICES"

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


def pin_worker(folder: Path, workers: int) -> tuple[set[int] | None, str | None]:
    """Hold this process to its share of the cores and to one GPU, for the rest of its life; returns both. It must not
    have used a GPU yet.

    None in place of cores where there are fewer than workers, and on systems that hold no process to cores; in place of
    a GPU where there are not several; of both where all slots are taken, and for one worker.
    """
    slot = None if _held or workers < 2 else _take_slot(folder, workers)
    return (None, None) if slot is None else (_pin_cores(slot, workers), _pin_device(slot))


def _take_slot(folder: Path, workers: int) -> int | None:
    """Lock the first slot that no other worker has."""
    (folder / SLOTS).mkdir(exist_ok=True)
    for slot in range(workers):
        file = (folder / SLOTS / str(slot)).open("ab")
        if disk.try_lock(file.fileno()):
            _held.append(file)
            return slot
        file.close()
    return None


def _pin_cores(slot: int, workers: int) -> set[int] | None:
    if not hasattr(os, "sched_setaffinity") or workers > count_cores():
        return None
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // workers
    own = set(cores[slot * share : (slot + 1) * share])
    os.sched_setaffinity(0, own)
    return own


def _pin_device(slot: int) -> str | None:
    """Show this process one GPU of those that it sees: `cuda` is that one then. Workers in excess share them."""
    visible = list_devices()
    if len(visible) < 2:
        return None
    own = os.environ[DEVICES] = visible[slot % len(visible)]
    return own


def list_devices() -> list[str]:
    """The GPUs that this process sees, as the environment names them. Asking starts no CUDA."""
    if (said := os.environ.get(DEVICES)) is not None:
        return [each.strip() for each in said.split(",") if each.strip()]
    from zoo.lazy import torch

    return [str(each) for each in range(torch.cuda.device_count())]
