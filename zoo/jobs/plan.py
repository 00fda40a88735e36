"""Plan the jobs of `zoo train`: all are composed and checked before the first one starts on Hydra's engine."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import runs
from zoo.compose.composing import Composed
from zoo.compose.fault_lines import shorten_error
from zoo.compose.hydra_engine import (
    Hydra,
    HydraConfig,
    Listed,
    Override,
    RunMode,
    launch_jobs,
    open_session,
    store_model,
    store_primary,
)
from zoo.compose.overrides import format_override, list_alternatives, list_values, parse_overrides
from zoo.compose.shorthand import anchor_defaults
from zoo.compose.sources import StatedFile, locating
from zoo.compose.targets import Target, find_target, is_file, list_defaults, list_packaged, note_idle, read_yaml
from zoo.distributed.world import read_world
from zoo.errors import ConfigError, refuse, short
from zoo.jobs.implied import imply_by_weights
from zoo.jobs.loader import ROOT, JobLoader, states_subdir, task_config
from zoo.jobs.record import run_one_job
from zoo.jobs.sweep import SweepPoint, list_varied
from zoo.training import restarts
from zoo.training.planning import TrainingPlan, plan_training


@dataclasses.dataclass
class LaunchPlan:
    """A run or a sweep that is ready to start: Hydra, the primary config, the overrides, and the jobs made of them."""

    hydra: Hydra
    loader: JobLoader
    config_name: str
    overrides: list[str]
    """The overrides as the user typed them, sweeps included."""
    jobs: list[Composed]
    sweeps: bool
    planned: list[TrainingPlan | None] = dataclasses.field(default_factory=list)
    """The training plan of each job; None for a job that has faults or was not checked."""
    arms: Sequence[str] = ()
    """The arm of each job of an experiment; empty for a run or a sweep."""
    samples: bool = False
    """Whether a sampling sweeper draws the jobs, so that they are not known in advance."""
    made: list[Path] = dataclasses.field(default_factory=list)
    """The folders that `make_folder` has created, inner ones first."""

    def find_folder(self) -> Path:
        """Return the folder that the config names: `hydra.run.dir`, or `hydra.sweep.dir` for a sweep. Raises
        ConfigError for a faulty name."""
        cfg, key = self._compose_hydra(), "hydra.sweep.dir" if self.sweeps else "hydra.run.dir"
        try:
            return Path(str(OmegaConf.select(cfg, key)))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {shorten_error(error)}") from error

    def make_folder(self) -> Path:
        """Make a new folder for this run or sweep; a number is added if another run started in the same second. A
        folder that the overrides name is used as it is. Raises ConfigError if the named folder is in use, or a folder
        cannot be made.
        """
        wanted, key = self.find_folder(), "hydra.sweep.dir" if self.sweeps else "hydra.run.dir"
        try:
            self.made = [path for path in (wanted, *wanted.parents) if not path.exists()]
            if any(o.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for o in self.overrides):
                wanted.mkdir(parents=True, exist_ok=True)
                return _unused(wanted, self.sweeps)
            return self._make_new(wanted)
        except OSError as error:
            found = error.strerror or short(error)
            raise ConfigError(f"{wanted}: cannot be made, found {found} ({key}=FOLDER names another)") from error

    def _compose_hydra(self) -> DictConfig:
        """Compose the config with its node `hydra`, and give it to Hydra, which resolves the node's interpolations."""
        mode = RunMode.MULTIRUN if self.sweeps else RunMode.RUN
        cfg = self.loader.load_configuration(self.config_name, self.overrides, mode)
        HydraConfig.instance().set_config(cfg)
        return cfg

    def _find_own(self) -> Path | None:
        """Find the folder of the run that this launch started before torchrun restarted its processes; None for a first
        start. Raises ConfigError if restarts are allowed and the folder is named by the time: a restarted process could
        not find the folder."""
        launch = restarts.read_launch()
        if launch is None:
            return None
        cfg = self._compose_hydra()
        if launch.most and "${now:" in str(OmegaConf.to_container(cfg.hydra.run, resolve=False)):
            found = f"is named by the time, and torchrun may restart the run (--max-restarts={launch.most})"
            raise ConfigError(f"hydra.run.dir: {found}, which then looks for its folder (hydra.run.dir=FOLDER)")
        folder = Path(str(cfg.hydra.run.dir))
        return folder if restarts.belongs_to_launch(folder, task_config(self.jobs[0])) else None

    @staticmethod
    def _make_new(wanted: Path) -> Path:
        """Make the folder, with a number added to its name if it exists."""
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
        raise AssertionError("unreachable")

    @contextmanager
    def hold_folder(self) -> Iterator[Path]:
        """Make the folder and lock it before Hydra writes into it: another process may choose the same folder."""
        folder = self.make_folder()
        with runs.locked_for_launch(folder, lambda line: print(line, file=sys.stderr)):
            _refuse_used(folder, self.sweeps)  # another process may have used it before the lock
            yield folder

    def run(self) -> Any:
        """Run the single job. Returns the task's result, or raises its error."""
        from zoo.jobs.train import rejoin_run, start_run

        if not read_world().main:
            return start_run(task_config(self.jobs[0]), None)  # without a folder of its own, and without Hydra
        if (own := self._find_own()) is not None:
            if restarts.has_checkpoint(own):
                try:
                    return rejoin_run(own, task_config(self.jobs[0]))
                finally:
                    runs.remember(own)
            restarts.clear_for_restart(own)
        with self.hold_folder() as folder:
            self.loader.folder = str(folder)
            restarts.note_launch(folder, task_config(self.jobs[0]))
            result = self.hydra.run(self.config_name, run_one_job, self.overrides).return_value
        if isinstance(result, ConfigError):
            self._discard(folder)
        if isinstance(result, BaseException):
            raise result
        return result

    def launch(self, folder: Path, jobs: Sequence[SweepPoint]) -> None:
        """Run jobs of a sweep. Each job that ends, failed or not, leaves a `result.json` in its subfolder of
        `folder`."""
        self.loader.folder = str(folder)
        launch_jobs(self.hydra, self.config_name, run_one_job, self.overrides, [each.typed for each in jobs])

    def list_points(self) -> list[SweepPoint]:
        """List the valid jobs of a sweep, in order."""
        named = zip(self.jobs, self.planned, self.arms or [""] * len(self.jobs), strict=True)
        return [SweepPoint.of(each, planned, arm) for each, planned, arm in named if planned]

    def list_refused(self) -> dict[str, list[str]]:
        """Map the overrides of each invalid point to its faults."""
        names = list_varied([each.typed for each in self.jobs])
        listed = zip(names, self.jobs, self.planned, strict=True)
        return {name: each.faults for name, each, planned in listed if planned is None}

    def sample(self, folder: Path) -> None:
        """Run the jobs that a sampling sweeper proposes."""
        self.loader.folder = str(folder)
        self.hydra.multirun(self.config_name, run_one_job, self.overrides)

    def compose_point(self, overrides: Sequence[str], arm: str = "") -> SweepPoint:
        """Compose a job of the sweep, or of an experiment's arm, from its overrides. Raises ConfigError with its
        faults."""
        composed = self.loader.compose_job(overrides)
        planned = _check(composed, self.loader.varied)
        composed.refuse_faults()
        assert planned is not None
        return SweepPoint.of(composed, planned, arm)

    def _discard(self, folder: Path) -> None:
        """Remove the folder of a run that refused its input at the start, and the parent folders made for it."""
        of_a_start = {".hydra", "train.log", runs.RESULT, runs.LOCK, restarts.FILE}
        nothing_done = {path.name for path in folder.iterdir()} <= of_a_start
        if nothing_done and not runs.is_locked(folder):  # locked: another process trains in it
            shutil.rmtree(folder)
            for path in self.made:
                if path.exists() and not any(path.iterdir()):
                    path.rmdir()


def _unused(folder: Path, sweeps: bool) -> Path:
    """Return the folder that the user named. Raises ConfigError if another process trains in it, or if it has a run:
    Hydra would overwrite that run's files before the new run takes its lock. A sweep may continue in its own folder."""
    if runs.is_locked(folder):
        raise ConfigError(f"{folder}: another process is training in it (wait for it, stop it, or name another folder)")
    _refuse_used(folder, sweeps)
    return folder


def _refuse_used(folder: Path, sweeps: bool) -> None:
    """Raise ConfigError if a folder has a run or a sweep in it. A sweep may use a folder with a sweep.json."""
    if sweeps and (folder / runs.SWEEP).is_file():
        return
    if any((folder / name).exists() for name in ("checkpoints", "multirun.yaml")):
        raise ConfigError(f"{folder}: has a run in it (`zoo train --resume {folder}` goes on with it, or name another)")


@contextmanager
def plan_launch(
    overrides: Sequence[str],
    *,
    config: Path | None = None,
    sweeps: bool = False,
    check: bool = True,
    keep_faulty: bool = False,
    trust: bool = False,
    arms: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[LaunchPlan]:
    """Open Hydra and yield the plan of a run or a sweep. Raises ConfigError with the faults of all jobs.

    With `arms` the jobs are those of an experiment: the overrides of each arm are added to `overrides`.

    With `check` every job is checked as training would check it; without it, only the overrides must fit the config.
    With `keep_faulty` faulty jobs stay in the plan with their faults, unless all are faulty. With `trust` the file
    `config`, and the files of its folder, may name code (`zoo.compose.gate`).
    """
    faults: list[str] = []
    body = read_yaml(config) if config else {}
    by_arm = {
        name: imply_by_weights(parse_overrides([*overrides, *own], faults), body)
        for name, own in (arms or {"": ()}).items()
    }
    models = {value: find_target(value) for value in _model_files([each for own in by_arm.values() for each in own])}
    folders = [config.resolve().parent] if config else []
    folders += [target.folder for target in models.values() if target.folder]
    trusted = folders[:1] if config and trust else []
    sources = [StatedFile(config, str(config))] if config else []
    sources += [dataclasses.replace(each, root=ROOT) for target in models.values() for each in target.sources]
    with (
        locating(sources, [*overrides, *itertools.chain.from_iterable((arms or {}).values())]),
        open_session(*dict.fromkeys(folders), trusted=trusted, loader=JobLoader) as hydra,
        ExitStack() as stack,
    ):
        loader = hydra.config_loader
        assert isinstance(loader, JobLoader)
        name = "config"
        if config:
            loader.label, loader.trusted = str(config), trust
            loader.body = list_defaults(body, loader.repo, loader.label, "/config", trusted=trust)
            # for `--info`, which composes by Hydra itself
            name = stack.enter_context(store_primary(loader.body, trusted=trust))
        options = {value: _as_option(value, target, loader.repo) for value, target in models.items()}
        by_arm = {
            name: [_of_loader(_with_options(each, options), loader) for each in own] for name, own in by_arm.items()
        }
        parsed = next(iter(by_arm.values()))
        refuse(_no_key(each) for each in parsed if each.get_key_element() in OPTIONS)
        faults += [_no_sweep(each) for each in parsed if each.is_sweep_override() and each.is_hydra_override()]
        master = loader.compose_job([format_override(each) for each in parsed if not each.is_sweep_override()])
        if master.cfg.hydra.searchpath:
            faults.append("hydra.searchpath: is not read (the folder of a file that you name is: -c FILE)")
        loader.sweeps = sweeps = sweeps or master.cfg.hydra.mode == RunMode.MULTIRUN
        parsed += _swept_by_config(master.cfg, parsed) if sweeps else []
        typed = [format_override(each) for each in parsed]
        lines = [
            (name, line) for name, own in by_arm.items() for line in itertools.product(*map(list_alternatives, own))
        ]
        stated = parse_overrides([word for own in (arms or {}).values() for word in own], [])
        varied = [*stated, *(each for each in parsed if each.is_sweep_override())]
        keys = (each.get_key_element().removeprefix(f"{ROOT}.") for each in varied)
        loader.varied = set(keys) if sweeps else None
        jobs = [loader.compose_job(line) for _, line in lines] if sweeps else [loader.compose_job(typed)]
        planned = [_check(each, loader.varied) if check else None for each in jobs]
        if sweeps and states_subdir(master.cfg):
            faults.append("hydra.sweep.subdir: is not read, jobs are named by the hash of their config (leave it out)")
        names = [each for each, _ in lines] if arms else []
        faults += [] if keep_faulty and any(planned) else _faults(jobs, names)
        refuse([*dict.fromkeys(faults)])
        samples = sweeps and not is_basic(master.cfg)
        typed = list(overrides) if arms else typed
        yield LaunchPlan(hydra, loader, name, typed, jobs, sweeps, planned, names, samples)


OPTIONS = ("match", "match_by", "baseline")
"""Options of `zoo train -m` that users may mistake for keys of the config."""


def _no_key(override: Override) -> str:
    text, option = format_override(override), override.get_key_element().replace("_", "-")
    return f"{text}: is an option of a sweep (--{option} {text.partition('=')[2]})"


def _no_sweep(override: Override) -> str:
    return f"{format_override(override)}: Hydra's own settings cannot be swept over (one value each)"


def _check(composed: Composed, varied: set[str] | None) -> TrainingPlan | None:
    """Plan the training of a job. If training would find faults, add these to the job's faults and return None.

    A key that the user set and nothing reads is a fault. In a sweep, where other jobs may read it, only a `varied` key
    is a fault; others are noted in `composed.left_out`.
    """
    touched = [key for key in composed.touched if varied is None or key in varied]
    try:
        planned = plan_training(task_config(composed), touched)
    except ConfigError as error:
        composed.faults += error.faults
        return None
    composed.left_out += note_idle(composed, varied, ROOT) if varied is not None and not composed.faults else []
    return None if composed.faults else planned


def _faults(jobs: Sequence[Composed], arms: Sequence[str] = ()) -> list[str]:
    """List the faults of all jobs. A fault that only some jobs have is followed by the first of them: its arm in an
    experiment, its overrides in a sweep."""
    where: dict[str, list[str]] = {}
    for each, overrides in zip(jobs, arms or list_varied([each.typed for each in jobs]), strict=True):
        for fault in dict.fromkeys(each.faults):
            where.setdefault(fault, []).append(overrides)
    lead = "arm " if arms else ""
    return [fault if len(found) == len(jobs) else f"{fault} [{lead}{found[0]}]" for fault, found in where.items()]


# ---------------------------------------------------------------- the user's own models, and sweeps


def _model_files(parsed: Sequence[Override]) -> list[str]:
    chosen = [each for each in parsed if each.get_key_element() == ROOT]
    return [value for each in chosen for value in list_values(each) if is_file(value)]


def _as_option(value: str, target: Target, repo: Listed) -> str:
    """Add a user's file to the options of the group `model` in this process, and return the option's name, which also
    names the run folder."""
    if target.option not in list_packaged():
        store_model(target.option, anchor_defaults(list_defaults(target.body, repo, value)))
    return target.option


def _with_options(override: Override, options: Mapping[str, str]) -> Override:
    if override.get_key_element() != ROOT or not options:
        return override
    chosen = ",".join(options.get(value, value) for value in list_values(override))
    return parse_overrides([f"{ROOT}={chosen}"], [])[0]


def _of_loader(override: Override, loader: JobLoader) -> Override:
    override.config_loader = loader  # in which `glob(*)` looks up the options
    return override


def is_basic(cfg: DictConfig) -> bool:
    """Tell whether a config has Hydra's basic sweeper, whose jobs are the combinations of all values."""
    return str(cfg.hydra.sweeper._target_).endswith(".BasicSweeper")


def _swept_by_config(cfg: DictConfig, parsed: Sequence[Override]) -> list[Override]:
    """Convert the config's own sweep (`hydra.sweeper.params` of Hydra's basic sweeper) into overrides, so that it is
    checked like a typed sweep. Keys that the user typed are left out."""
    sweeper = cfg.hydra.sweeper
    if not is_basic(cfg) or not sweeper.params:
        return []
    typed = {override.get_key_element() for override in parsed}
    faults: list[str] = []
    found = parse_overrides([f"{key}={value}" for key, value in sweeper.params.items() if key not in typed], faults)
    refuse(f"hydra.sweeper.params: {fault}" for fault in faults)
    return [*found, *parse_overrides(["hydra.sweeper.params=null"], faults)]
