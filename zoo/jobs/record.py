"""One job of a run or a sweep, as a launcher's worker calls it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import runs

if TYPE_CHECKING:
    from omegaconf import DictConfig


def job(cfg: DictConfig) -> Any:
    """The task function: at the top of a module, as launchers send it to their workers by name."""
    from hydra.core.hydra_config import HydraConfig

    from zoo.grammar import register_resolvers
    from zoo.training.task import start_run

    register_resolvers()  # a worker starts without them
    try:
        return start_run(cfg)
    finally:
        runs.remember(Path(HydraConfig.get().runtime.output_dir))
