"""Run one job of a run or a sweep; launchers call this in their workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import runs

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_one_job(cfg: DictConfig) -> Any:
    """Run Hydra's task function. It stands at the top of a module, as launchers pickle it by name."""
    from hydra.core.hydra_config import HydraConfig

    from zoo.grammar import register_resolvers
    from zoo.training.task import start_run

    register_resolvers()  # a worker starts without them
    try:
        return start_run(cfg)
    finally:
        runs.remember(Path(HydraConfig.get().runtime.output_dir))
