"""Hydra config loader that composes with Zoo, so that sweepers and launchers get complete, checked jobs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from zoo.compose.composing import TRAINING, Composed, Composition
from zoo.compose.hydra_engine import ConfigLoaderImpl, Listed, RunMode, fill_hydra_node
from zoo.compose.overrides import parse_overrides
from zoo.errors import ConfigError
from zoo.grammar import resolve
from zoo.jobs.callback import Record
from zoo.jobs.sweep import hash_config
from zoo.training.planning import plan_training, resolve_settings

ROOT = "model"
"""The model's key in a training config."""

BY_NUMBER = "${hydra.job.num}"
"""Hydra's default name of the folder of a sweep's job."""


def task_config(composed: Composed) -> DictConfig:
    """Copy a composed config without its node `hydra`."""
    return OmegaConf.masked_copy(composed.cfg, [str(key) for key in composed.cfg if key != "hydra"])


def states_subdir(cfg: DictConfig) -> bool:
    """Tell whether a config sets `hydra.sweep.subdir`, which names the folders of a sweep's jobs."""
    node = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    return isinstance(node, dict) and node.get("subdir") != BY_NUMBER


class JobLoader(ConfigLoaderImpl):
    """Compose every config for Hydra: of a run, of a sweep, and of each job that a sweeper proposes.

    Hydra's engine, sweepers and launchers get all configs from `load_configuration` (jobs through `load_sweep_config`).
    So a job is composed and checked in one way, whether the command line, BasicSweeper or a sampling plugin proposes
    it. Overrides stay as the user typed them; the run's records have them in Hydra's own form. A launcher's workers get
    the loader pickled.
    """

    body: Mapping[str, Any] = TRAINING
    label = "conf/config.yaml"
    """The name of `body` in messages."""
    trusted = False
    """Whether `body` may name code."""
    folder: str | None = None
    """The folder of the run or sweep, after it is made."""
    sweeps = False
    varied: set[str] | None = None
    """The keys that a sweep varies (keys of the model without `model.`); None for a run."""
    resolves = False
    """Whether the model's interpolations are replaced by their values, for a config that is printed."""

    @functools.cached_property
    def repo(self) -> Listed:
        return Listed(self.repository)

    @functools.cached_property
    def composition(self) -> Composition:
        return Composition(self.repo, self.body, self.label, root=ROOT, with_hydra=True, trusted=self.trusted)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("repo", "composition")}

    def compose_job(self, overrides: Sequence[str]) -> Composed:
        """Compose one job, and list the faults of its overrides."""
        return self.composition.compose(overrides, self.varied)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose the config of a job, or, for RunMode.MULTIRUN, the config of the sweep.

        A sweep's config has only the overrides that have a single value and fit the default model. Each job is
        composed, and checked, with all of its overrides. Raises ConfigError for a faulty job.
        """
        typed = parse_overrides(overrides, [])
        composed = self.compose_job([each.input_line or "" for each in typed if not each.is_sweep_override()])
        taken = typed
        if run_mode is RunMode.RUN:
            composed.refuse_faults()
            taken = parse_overrides(composed.overrides, [])
        fill_hydra_node(composed.cfg, taken, composed.choices, self.repo, config_name)
        self._place(composed.cfg)
        if self.sweeps and run_mode is RunMode.RUN:
            self._name_folder(composed)
        if self.resolves:
            body: Any = OmegaConf.to_container(task_config(composed), resolve=False)
            model = {ROOT: resolve(body.pop(ROOT))}
            for key, value in (resolve_settings(body) | model).items():
                OmegaConf.update(composed.cfg, key, value, merge=False)
        return composed.cfg

    def _name_folder(self, composed: Composed) -> None:
        """Name the folder of a sweep's job by the hash of its config. An invalid job, which a sampler may propose,
        keeps Hydra's default name (the job's number); its result.json has the error."""
        if states_subdir(composed.cfg):
            return
        try:
            name = hash_config(plan_training(task_config(composed)))
        except ConfigError:
            return
        OmegaConf.update(composed.cfg, "hydra.sweep.subdir", name)

    def _place(self, cfg: DictConfig) -> None:
        """Set in the node `hydra`: the mode, the folder, and the callback that records a job's outcome."""
        with open_dict(cfg):
            cfg.hydra.mode = RunMode.MULTIRUN if self.sweeps else RunMode.RUN
            cfg.hydra.callbacks.zoo = {"_target_": f"{Record.__module__}.{Record.__qualname__}"}
            if self.folder is not None:
                OmegaConf.update(cfg, "hydra.sweep.dir" if self.sweeps else "hydra.run.dir", self.folder)
