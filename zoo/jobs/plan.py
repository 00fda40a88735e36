"""`zoo train` on Hydra's own engine: every job is composed and checked before the first one starts."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.compose.composing import TRAINING, Composed, compose
from zoo.compose.engine import (
    CachingConfigRepository,
    Hydra,
    HydraConfig,
    Override,
    Quote,
    QuotedString,
    RunMode,
    caching,
    primary,
    session,
    store_model,
)
from zoo.compose.model import Target, find, is_file, names, read, with_defaults
from zoo.compose.overrides import alternatives, parse, text, values
from zoo.compose.shorthand import absolute
from zoo.errors import ConfigError
from zoo.jobs.callback import Record
from zoo.jobs.record import job
from zoo.runs import RESULT

ROOT = "model"


@dataclasses.dataclass
class Plan:
    """What is to be run: Hydra, the config it starts from, its overrides, and the jobs they come to."""

    hydra: Hydra
    config_name: str
    overrides: list[str]
    jobs: list[Composed]
    sweeps: bool
    made: list[Path] = dataclasses.field(default_factory=list)
    """The folders that were not there before, inner ones first."""

    def folder(self) -> Path:
        """A folder of its own for this run or sweep, made here: two that start in the same second get two."""
        mode = RunMode.MULTIRUN if self.sweeps else RunMode.RUN
        cfg = self.hydra.compose_config(self.config_name, self.overrides, mode)
        HydraConfig.instance().set_config(cfg)
        wanted = Path(str(cfg.hydra.sweep.dir if self.sweeps else cfg.hydra.run.dir))
        self.made = [path for path in (wanted, *wanted.parents) if not path.exists()]
        if any(o.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for o in self.overrides):
            return _unused(wanted)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
        raise AssertionError("unreachable")

    def run(self) -> Any:
        """Runs the one job; gives what the task returned, or raises what it raised."""
        folder = self.folder()
        result = self._start(self.hydra.run, "run", folder).return_value
        if isinstance(result, ConfigError):
            self._discard(folder)
        if isinstance(result, BaseException):
            raise result
        return result

    def sweep(self, folder: Path) -> None:
        """Runs every job. Each that ends, well or not, leaves a `result.json` in its folder below."""
        self._start(self.hydra.multirun, "sweep", folder)

    def _discard(self, folder: Path) -> None:
        """Removes the folder of a run that refused its input before it had done anything, and those made to hold it."""
        if {path.name for path in folder.iterdir()} <= {".hydra", "train.log", RESULT}:
            shutil.rmtree(folder)
            for path in self.made:
                if path.exists() and not any(path.iterdir()):
                    path.rmdir()

    def _start(self, start: Any, kind: str, folder: Path) -> Any:
        place = QuotedString(str(folder), Quote.single).with_quotes()
        extra = [
            f"hydra.{kind}.dir={place}",
            f"hydra.mode={'MULTIRUN' if self.sweeps else 'RUN'}",
            f"++hydra.callbacks.zoo._target_={Record.__module__}.{Record.__qualname__}",
        ]
        given = [o for o in self.overrides if not o.startswith((f"hydra.{kind}.dir=", "hydra.mode="))]
        return start(self.config_name, job, given + extra)


def _unused(folder: Path) -> Path:
    """The folder that the user named. Raises ConfigError when a run or a sweep is in it already."""
    if any((folder / name).exists() for name in ("checkpoints", "multirun.yaml")):
        raise ConfigError(f"{folder}: has a run in it (`zoo train --resume {folder}` goes on with it, or name another)")
    return folder


@contextmanager
def planned(
    overrides: Sequence[str], *, config: Path | None = None, sweeps: bool = False, check: bool = True
) -> Iterator[Plan]:
    """A plan, with Hydra open to run it. Raises ConfigError with the faults of all jobs.

    With `check` every job is held against what training needs; without, the overrides alone have to fit the config.
    """
    faults: list[str] = []
    parsed = parse(overrides, faults)
    models = {value: find(value) for value in _model_files(parsed)}
    folders = [config.resolve().parent] if config else []
    folders += [target.folder for target in models.values() if target.folder]
    with session(*dict.fromkeys(folders)) as hydra, ExitStack() as stack:
        repo = caching(hydra.config_loader.repository)  # type: ignore[attr-defined]
        body = with_defaults(read(config), repo, str(config), "/config") if config else TRAINING
        name = stack.enter_context(primary(body)) if config else "config"
        options = {value: _as_option(value, target, repo) for value, target in models.items()}
        parsed = [_of_loader(_with_options(each, options), hydra.config_loader) for each in parsed]

        def one(line: Sequence[str]) -> Composed:
            return compose(repo, body, line, label=str(config or "conf/config.yaml"), root=ROOT, with_hydra=True)

        master = one([text(each) for each in parsed if not each.is_sweep_override()])
        sweeps = sweeps or master.cfg.hydra.mode == RunMode.MULTIRUN
        parsed += _swept_by_config(master.cfg, parsed) if sweeps else []
        lines = itertools.product(*map(alternatives, parsed)) if sweeps else [[text(each) for each in parsed]]
        varied = {each.get_key_element().removeprefix(f"{ROOT}.") for each in parsed if each.is_sweep_override()}
        jobs = [_checked(one(line), varied if sweeps else None) if check else one(line) for line in lines]
        if faults := [*dict.fromkeys([*faults, *_faults(jobs)])]:
            raise ConfigError(*faults)
        yield Plan(hydra, name, _for_hydra(parsed, jobs, master) if sweeps else jobs[0].overrides, jobs, sweeps)


def _checked(composed: Composed, varied: set[str] | None) -> Composed:
    """The job with the faults that training itself would find.

    A key that nothing reads is one: in a sweep only where its value is `varied`, as some jobs may read what others
    do not.
    """
    from zoo.training.task import plan_training

    touched = [key for key in composed.touched if varied is None or key in varied]
    try:
        plan_training(task_config(composed), touched)
    except ConfigError as error:
        composed.faults += error.faults
    return composed


def task_config(composed: Composed) -> DictConfig:
    """What the task gets: the config without Hydra's own node."""
    return OmegaConf.masked_copy(composed.cfg, [str(key) for key in composed.cfg if key != "hydra"])


def _faults(jobs: Sequence[Composed]) -> list[str]:
    """The faults of all jobs; one that not every job has says in which it is."""
    where: dict[str, list[str]] = {}
    for each, overrides in zip(jobs, swept(jobs), strict=True):
        for fault in dict.fromkeys(each.faults):
            where.setdefault(fault, []).append(overrides)
    return [fault if len(found) == len(jobs) else f"{fault} [{found[0]}]" for fault, found in where.items()]


def swept(jobs: Sequence[Composed]) -> list[str]:
    """The overrides of each job that not all of them have."""
    shared = set.intersection(*(set(each.typed) for each in jobs))
    return [" ".join(override for override in each.typed if override not in shared) for each in jobs]


# ---------------------------------------------------------------- the user's own models, and sweeps


def _model_files(parsed: Sequence[Override]) -> list[str]:
    """The files that `model=` names."""
    chosen = [each for each in parsed if each.get_key_element() == ROOT]
    return [value for each in chosen for value in values(each) if is_file(value)]


def _as_option(value: str, target: Target, repo: CachingConfigRepository) -> str:
    """The option of the group `model` that a user's file is made, for this process; the run folder has its name."""
    if target.option not in names():
        store_model(target.option, absolute(with_defaults(target.body, repo, value)))
    return target.option


def _with_options(override: Override, options: Mapping[str, str]) -> Override:
    if override.get_key_element() != ROOT or not options:
        return override
    chosen = ",".join(options.get(value, value) for value in values(override))
    return parse([f"{ROOT}={chosen}"], [])[0]


def _of_loader(override: Override, loader: Any) -> Override:
    override.config_loader = loader  # what `glob(*)` looks its options up in
    return override


def _swept_by_config(cfg: DictConfig, parsed: Sequence[Override]) -> list[Override]:
    """The sweep that the config itself asks of Hydra's basic sweeper, the user's keys apart: checked as theirs is."""
    sweeper = cfg.hydra.sweeper
    if not str(sweeper._target_).endswith(".BasicSweeper") or not sweeper.params:
        return []
    typed = {override.get_key_element() for override in parsed}
    faults: list[str] = []
    found = parse([f"{key}={value}" for key, value in sweeper.params.items() if key not in typed], faults)
    if faults:
        raise ConfigError(*(f"hydra.sweeper.params: {fault}" for fault in faults))
    return [*found, *parse(["hydra.sweeper.params=null"], faults)]


def _for_hydra(parsed: Sequence[Override], jobs: Sequence[Composed], master: Composed) -> list[str]:
    """The sweep as Hydra takes it.

    Hydra first composes with everything that is not swept, on the default model, and refuses what that has not. Where
    it would, a key is forced, and a choice is written as a sweep over one value.
    """
    lines = []
    for override in parsed:
        key = override.get_key_element()
        taken = {each.keys.get(key, key) for each in jobs}
        if len(taken) > 1:
            raise ConfigError(f"{text(override)}: some jobs have '{key}' and others do not (sweep over them apart)")
        place, value = taken.pop(), text(override)[len(key) :]
        if override.is_sweep_override() or override.is_hydra_override() or master.keys.get(key) == place:
            lines.append(f"{place}{value}")
        elif place.lstrip("+") in jobs[0].choices:
            lines.append(f"{place}=choice({value[1:]})")
        else:
            lines.append(f"++{place.lstrip('+')}{value}")
    return lines
