"""Let a run go on by itself after torchrun has restarted its processes.

A run notes which launch it belongs to. A process of that same launch with the same config finds its own run in the
folder, and goes on from its newest checkpoint; any other is refused, as the folder has a run in it.

    RUN/launch.json    {"launch": "…", "config": "…"}: the id that torchrun gave, and a digest of the composed config;
                       {"launch": "…", "chosen": "400"} of one that began with `--resume RUN@400`
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo import disk, runs
from zoo.errors import CheckpointError
from zoo.ranks.world import read_world
from zoo.untrusted.json_file import SETTINGS, read_json

FILE = "launch.json"


@dataclass(frozen=True)
class Launch:
    """One launch by torchrun, which may start the processes several times."""

    id: str
    restarts: int
    """How often torchrun has restarted the processes of this machine because one was lost."""
    most: int
    """How often it may."""


_begun: set[Path] = set()
"""Folders of runs that this very process has begun: it cannot be a restart of itself."""


def read_launch() -> Launch | None:
    """Read torchrun's variables; None in a process that it has not started.

    Without `--rdzv-id` torchrun calls every launch "none": then it is known by torchrun's own process.
    """
    known = os.environ.get("TORCHELASTIC_RUN_ID")
    if known is None:
        return None
    found = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    restarts, most = (int(each) if each.isdigit() else 0 for each in found)
    return Launch(known if known != "none" else f"process {os.getppid()} on {platform.node()}", restarts, most)


def is_launched() -> bool:
    """Tell whether something has started this process as one of a run's."""
    return read_launch() is not None or read_world().size > 1


def describe_note(cfg: DictConfig) -> dict[str, Any] | None:
    """The note that a run of this process leaves in its folder."""
    if (launch := read_launch()) is None:
        return None
    return {"launch": launch.id, "config": hashlib.sha256(OmegaConf.to_yaml(cfg).encode()).hexdigest()}


def note_launch(folder: Path, cfg: DictConfig) -> None:
    """Note in a run's folder which launch it belongs to."""
    if (note := describe_note(cfg)) is not None:
        _begun.add(folder.resolve())
        disk.write_text(folder / FILE, json.dumps(note) + "\n")


def belongs_to_launch(folder: Path, cfg: DictConfig) -> bool:
    """Tell whether the run in a folder was started by the launch of this process, with the same config."""
    return _is_noted(folder, describe_note(cfg))


def settle_choice(folder: Path, which: str) -> str:
    """Settle which checkpoint a process goes on from that was told `--resume RUN@WHICH`: that one, or the newest where
    its launch has gone on from that one before, and torchrun has started it again."""
    launch = read_launch()
    return "" if which and launch is not None and _is_noted(folder, _describe_choice(launch, which)) else which


def note_choice(folder: Path, which: str) -> None:
    """Note in a run's folder that this launch has gone on from the checkpoint that it was told. The main process
    does."""
    if which and read_world().main and (launch := read_launch()) is not None:
        _begun.add(folder.resolve())
        disk.write_text(folder / FILE, json.dumps(_describe_choice(launch, which)) + "\n")


def _describe_choice(launch: Launch, which: str) -> dict[str, str]:
    return {"launch": launch.id, "chosen": which}


def _is_noted(folder: Path, note: Any) -> bool:
    """Tell whether an earlier process has left a note in a run's folder."""
    try:
        found = read_json(folder / FILE, most=SETTINGS)
    except (FileNotFoundError, CheckpointError):
        return False
    return found == note and folder.resolve() not in _begun


def describe_restart() -> str:
    """The beginning of the line of a run that goes on after a restart; empty at the first start."""
    launch = read_launch()
    return f"restart {launch.restarts} of {launch.most}: " if launch and launch.restarts else ""


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a run has saved a checkpoint."""
    return (folder / runs.CHECKPOINTS / runs.LATEST).exists()


def clear_for_restart(folder: Path) -> None:
    """Remove what a save that was cut off has left in the folder of a run without a checkpoint, which starts anew."""
    if not runs.is_locked(folder):
        shutil.rmtree(folder / runs.CHECKPOINTS, ignore_errors=True)
