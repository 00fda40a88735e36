"""Resume a run automatically after torchrun has restarted its processes.

A run records its launch in its folder. A process of the same launch with the same config resumes from the newest
checkpoint. Any other process is refused, because the folder already has a run. torchrun's count of restarts does not
show a restart reliably: each machine counts for itself, and the count stays 0 when machines join or leave.

    RUN/launch.json    {"launch": "…", "config": "…"}: the id that torchrun gave, and a digest of the composed config;
                       {"launch": "…", "chosen": "400"} of a launch with `--resume RUN@400`
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from zoo import disk, runs
from zoo.distributed.world import read_world
from zoo.errors import CheckpointError
from zoo.untrusted.json_file import SETTINGS, read_json

FILE = "launch.json"


@dataclass(frozen=True)
class Launch:
    """One launch by torchrun, which may start the processes several times."""

    id: str
    restarts: int
    """How often torchrun has restarted this machine's processes after one was lost."""
    most: int
    """How often torchrun may restart them."""


_begun: set[Path] = set()
"""Folders of runs that this process has begun. The note in such a folder is this process's own, and no sign of a
restart."""


def read_launch() -> Launch | None:
    """Read torchrun's environment variables; None in a process that torchrun has not started.

    Without `--rdzv-id` torchrun's id is "none" for every launch. Then torchrun's process and host identify the launch.
    """
    known = os.environ.get("TORCHELASTIC_RUN_ID")
    if known is None:
        return None
    found = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    restarts, most = (int(each) if each.isdigit() else 0 for each in found)
    return Launch(known if known != "none" else f"process {os.getppid()} on {platform.node()}", restarts, most)


def is_launched() -> bool:
    """Whether this process was started by torchrun or another launcher."""
    return read_launch() is not None or read_world().size > 1


def note_launch(folder: Path, cfg: DictConfig) -> None:
    """Write into a run's folder that this launch has started it."""
    _write_note(folder, config=_hash_config(cfg))


def belongs_to_launch(folder: Path, cfg: DictConfig) -> bool:
    """Whether the run in a folder was started by this process's launch, with the same config."""
    return _is_noted(folder, config=_hash_config(cfg))


def settle_choice(folder: Path, which: str) -> str:
    """Choose the checkpoint for `--resume RUN@WHICH`: `which`, or the newest ("") if this process is a restart by
    torchrun and an earlier process of its launch has resumed from `which`."""
    return "" if which and _is_noted(folder, chosen=which) else which


def note_choice(folder: Path, which: str) -> None:
    """Write into a run's folder that this launch has resumed from checkpoint `which`. Only the main process writes."""
    if which and read_world().main:
        _write_note(folder, chosen=which)


def _hash_config(cfg: DictConfig) -> str:
    return hashlib.sha256(OmegaConf.to_yaml(cfg).encode()).hexdigest()


def _write_note(folder: Path, **about: str) -> None:
    """Write a note about this launch into a run's folder. Without torchrun nothing is written."""
    if (launch := read_launch()) is not None:
        _begun.add(folder.resolve())
        disk.write_text(folder / FILE, json.dumps({"launch": launch.id, **about}) + "\n")


def _is_noted(folder: Path, **about: str) -> bool:
    """Whether an earlier process of this launch has left this note in a run's folder."""
    if (launch := read_launch()) is None or folder.resolve() in _begun:
        return False
    try:
        return read_json(folder / FILE, most=SETTINGS) == {"launch": launch.id, **about}
    except (FileNotFoundError, CheckpointError):
        return False


def describe_restart() -> str:
    """Return the beginning of the line about resuming after a restart; empty at the first start."""
    launch = read_launch()
    return f"restart {launch.restarts} of {launch.most}: " if launch and launch.restarts else ""


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return (folder / runs.CHECKPOINTS / runs.LATEST).exists()


def clear_for_restart(folder: Path) -> None:
    """Remove the remains of an interrupted first save, so that the run can start again. Leaves a locked run alone."""
    if not runs.is_locked(folder):
        shutil.rmtree(folder / runs.CHECKPOINTS, ignore_errors=True)
