"""Load configs for Hydra by our own composing: sweepers and launchers get finished jobs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from zoo.compose.composing import TRAINING, Composed, Composition
from zoo.compose.engine import ConfigLoaderImpl, Listed, RunMode, fill_hydra_node
from zoo.compose.overrides import parse_overrides
from zoo.errors import ConfigError
from zoo.grammar import resolve
from zoo.jobs.callback import Record
from zoo.jobs.sweep import hash_config
from zoo.training.planning import plan_training

ROOT = "model"
"""Where the model stands in a training config."""

BY_NUMBER = "${hydra.job.num}"
"""How Hydra names the folder of a sweep's job, unless it is told otherwise."""


def task_config(composed: Composed) -> DictConfig:
    """Copy the config without Hydra's own node, as the task takes it."""
    return OmegaConf.masked_copy(composed.cfg, [str(key) for key in composed.cfg if key != "hydra"])


def states_subdir(cfg: DictConfig) -> bool:
    """Tell whether a config names the folders of a sweep's jobs itself."""
    node = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    return isinstance(node, dict) and node.get("subdir") != BY_NUMBER


class JobLoader(ConfigLoaderImpl):
    """Compose every config that Hydra asks for: of a run, of a sweep, and of each job that a sweeper proposes.

    Hydra's engine, its sweepers and its launchers get all their configs from `load_configuration` (that of a job by
    way of `load_sweep_config`). So overrides stay as the user typed them, a job is composed in one way, whoever asks,
    and Hydra need not be told that a key is there. A launcher's workers get the loader pickled.
    """

    body: Mapping[str, Any] = TRAINING
    label = "conf/config.yaml"
    """The body's name in messages."""
    trusted = False
    """Whether the body may name code."""
    folder: str | None = None
    """The folder of the run or sweep, once it is made."""
    sweeps = False
    resolves = False
    """Whether the interpolations of the model are followed, for a config that is printed so."""

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
        return self.composition.compose(overrides)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose the config of a job; or, for RunMode.MULTIRUN, of the sweep that launches jobs.

        A sweep's config holds the overrides that have one value. Those that the default model has no place for are
        left out of it: every job is composed, and refused, with all of its own. Raises ConfigError for a faulty job.
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
            model: Any = OmegaConf.to_container(composed.cfg[ROOT], resolve=False)
            OmegaConf.update(composed.cfg, ROOT, resolve(model), merge=False)
        return composed.cfg

    def _name_folder(self, composed: Composed) -> None:
        """Name the folder of a sweep's job by the hash of its config. One that cannot be trained, which a sampler may
        propose, keeps Hydra's name, its number, and says there what is wrong."""
        if states_subdir(composed.cfg):
            return
        try:
            name = hash_config(plan_training(task_config(composed)))
        except ConfigError:
            return
        OmegaConf.update(composed.cfg, "hydra.sweep.subdir", name)

    def _place(self, cfg: DictConfig) -> None:
        """Write into the `hydra` node the mode, the folder, and the callback that records how a job ends."""
        with open_dict(cfg):
            cfg.hydra.mode = RunMode.MULTIRUN if self.sweeps else RunMode.RUN
            cfg.hydra.callbacks.zoo = {"_target_": f"{Record.__module__}.{Record.__qualname__}"}
            if self.folder is not None:
                OmegaConf.update(cfg, "hydra.sweep.dir" if self.sweeps else "hydra.run.dir", self.folder)
