"""Run one job of a run or a sweep; launchers call this in their workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import runs

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_one_job(cfg: DictConfig) -> Any:
    """Train one job and return its outcome: Hydra's task function. Defined at a module's top level, because launchers
    pickle the function by name."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from zoo.errors import Pruned
    from zoo.jobs.pinning import count_workers, pin_worker
    from zoo.jobs.train import resume_run, start_run
    from zoo.jobs.trials import pruned_as_trial
    from zoo.run.machine_memory import release_memory
    from zoo.training.restarts import clear_for_restart, has_checkpoint

    folder, hydra = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get()
    try:
        if (workers := count_workers(hydra.launcher)) is not None:
            pin_worker(folder.parent, workers)
        if hydra.mode == RunMode.MULTIRUN:  # the config's hash names the folder, so its files are of this very run
            if (found := runs.read_whole_result(folder / runs.RESULT)).get("status") == "done":
                return found  # a sampler has proposed it before
            trial = runs.read_sweep(folder.parent).get(folder.name, {}).get("trial")
            with pruned_as_trial(folder.parent, trial):
                if has_checkpoint(folder):
                    return resume_run(folder, typed=cfg)
                clear_for_restart(folder)
                release_memory()
                return start_run(cfg, folder)
        return start_run(cfg, folder)
    except Pruned as ended:
        return {"status": ended.status, "error": str(ended)}
    finally:
        runs.remember(folder)
