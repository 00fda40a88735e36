"""Pin each worker of a sweep to its own cores, and to one GPU if there are several.

joblib gives each worker its share of the threads, but the system still moves these threads between all cores, away from
their caches and, on a machine with several sockets, from their memory. Every worker sees all GPUs, and all workers
would train on the first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from zoo import disk

if TYPE_CHECKING:
    from omegaconf import DictConfig

SLOTS = ".slots"
"""The subfolder of a sweep with one file per concurrent worker, locked by the worker while it lives."""

DEVICES = "CUDA_VISIBLE_DEVICES"

_held: list[IO[bytes]] = []
"""The locked slot file of this process, kept open to hold the lock."""


def count_workers(launcher: DictConfig) -> int | None:
    """Count the workers of joblib's launcher from its settings; None for another launcher."""
    if not str(launcher.get("_target_", "")).endswith(".JoblibLauncher"):
        return None
    cores, jobs = count_cores(), int(launcher["n_jobs"] or 1)
    return jobs if jobs > 0 else max(cores + 1 + jobs, 1)  # as joblib counts: -1 is all


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin_worker(folder: Path, workers: int) -> tuple[set[int] | None, str | None]:
    """Pin this process to its share of the cores and to one GPU, permanently; returns both. The process must not have
    used a GPU yet.

    The cores are None if there are fewer cores than workers, or if the system cannot pin. The GPU is None if there are
    fewer than two GPUs. Both are None if all slots are taken, if this process is pinned already, or for a single
    worker.
    """
    slot = None if _held or workers < 2 else _take_slot(folder, workers)
    return (None, None) if slot is None else (_pin_cores(slot, workers), _pin_device(slot))


def _take_slot(folder: Path, workers: int) -> int | None:
    """Lock the first free slot and return its number; None if all are taken."""
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
    """Make one of the visible GPUs the only one that this process sees. If workers outnumber the GPUs, they share."""
    visible = list_devices()
    if len(visible) < 2:
        return None
    own = os.environ[DEVICES] = visible[slot % len(visible)]
    return own


def list_devices() -> list[str]:
    """List the GPUs that this process sees, by their names in CUDA_VISIBLE_DEVICES. Does not initialise CUDA."""
    if (said := os.environ.get(DEVICES)) is not None:
        return [each.strip() for each in said.split(",") if each.strip()]
    from zoo.lazy import torch

    return [str(each) for each in range(torch.cuda.device_count())]
