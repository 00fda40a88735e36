"""What is left behind of a job: `result.json` in its folder, and the name of the last run for `zoo generate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.training.log import RESULT

if TYPE_CHECKING:
    from omegaconf import DictConfig

LAST = Path("runs", "last")


def job(cfg: DictConfig) -> Any:
    """The task function: at the top of a module, as launchers send it to their workers by name."""
    from hydra.core.hydra_config import HydraConfig

    from zoo.grammar import register_resolvers
    from zoo.training.task import task

    register_resolvers()  # a worker starts without them
    try:
        return task(cfg)
    finally:
        remember(Path(HydraConfig.get().runtime.output_dir))


def remember(folder: Path) -> None:
    """Notes a run as the last, if it has left a checkpoint."""
    from zoo.checkpoint.store import CHECKPOINTS, LATEST

    if (folder / CHECKPOINTS / LATEST).exists():
        inside = folder.is_relative_to(Path.cwd())
        LAST.parent.mkdir(exist_ok=True)
        write(LAST, f"{folder.relative_to(Path.cwd()) if inside else folder}\n")


def last_run() -> Path:
    """The folder of the last run started from here that left a checkpoint. Raises ConfigError when there is none."""
    if not LAST.exists():
        raise ConfigError(
            f"checkpoint: there is no {LAST} here, so no last run (`zoo train` makes one, or --checkpoint DIR)"
        )
    folder = Path(LAST.read_text(encoding="utf-8").strip())
    if not folder.is_dir():
        raise ConfigError(f"checkpoint: the last run, {folder}, is gone (name another with --checkpoint DIR)")
    return folder


def results(folder: Path, jobs: int) -> list[dict[str, Any]]:
    """What each job of a sweep came to, by number; one that was cut off has left no result."""
    files = [folder / str(number) / RESULT for number in range(jobs)]
    missing = {"overrides": [], "status": "cut off"}
    return [json.loads(file.read_text(encoding="utf-8")) if file.exists() else missing for file in files]


def write(file: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)
