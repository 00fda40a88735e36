"""Find the files of runs: their names, the newest checkpoint, the last run of the working folder.

RUN/lock                             locked by the process that trains; has its id and its machine
RUN/checkpoints/latest               the name of the newest checkpoint
RUN/checkpoints/best                 the name of the checkpoint with the best evaluation (keep_best)
RUN/checkpoints/step-000400/         a checkpoint (zoo/checkpoint/store.py)
RUN/result.json                      the run's outcome
RUN/metrics.jsonl                    a line for each recorded step and for each evaluation
RUN/metrics.csv, samples.txt         the same as a table, and the samples written at each evaluation
RUN/loss.png, index.html             a plot of the losses, and the run's page
RUN/environment.json                 the machine and versions of each start and resumption
RUN/config.yaml, model.yaml          the training config, and the model's Spec
RUN/tokenizer/                       files that a run does not change: tokenizer, template, … (zoo/checkpoint/beside.py)
runs/last                            the folder of the last run, for `zoo generate`
SWEEP/sweep.json                     the jobs of a sweep, by the names of their folders (zoo/jobs/sweep.py)
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo import disk
from zoo.errors import CheckpointError, ConfigError
from zoo.untrusted.json_file import COUNTED, SETTINGS, check_shape, read_bytes, read_json
from zoo.untrusted.printable import quote, shorten
from zoo.untrusted.stated_paths import check_settings, find_inside

ARCHITECTURE, WEIGHTS, ADAPTERS = "zoo.yaml", "model.safetensors", "adapter.safetensors"
CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"
AVERAGES = ("ema", "lawa")  # averages of the weights in a checkpoint; `RUN/ema` is in the newest checkpoint
COUNTERS = "training.json"  # in a checkpoint from which training can resume
RESULT, METRICS = "result.json", "metrics.jsonl"
TABLE, SAMPLES = "metrics.csv", "samples.txt"
PICTURE, PAGE, ENVIRONMENT = "loss.png", "index.html", "environment.json"
MEASURED = "measured.json"  # measurements made after the run's training
CONFIG, MODEL, TOKENIZER = "config.yaml", "model.yaml", "tokenizer"
TEMPLATE = "chat_template.jinja"  # beside a tokenizer, in runs as in transformers' folders
LOCK = "lock"
SWEEP = "sweep.json"
LAST_RUN = Path("runs", "last")
MOST_POINTER = 1 << 16  # maximum bytes of a file that holds a name
MOST_METRICS = 1 << 30  # maximum bytes of a file of metrics: a line for each of some million steps


def find(path: str | Path) -> Path:
    """Find the checkpoint folder for a path: the path itself, a run's newest checkpoint (`RUN`), its best (`RUN@best`)
    or a step's (`RUN@400`), or an average of the weights (`RUN/ema`). Raises CheckpointError if there is none."""
    path, which = split_choice(path)
    disk.recover(path)
    if path.name in AVERAGES and not path.exists() and path.parent.exists():
        return _find_average(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder (a checkpoint, or the folder of a run)")
    if (path / ARCHITECTURE).is_file() or (path / "config.json").is_file():
        return check_settings(path)
    root = path if (path / LATEST).is_file() else path / CHECKPOINTS
    if not (root / LATEST).is_file():
        raise CheckpointError(
            f"{path}: no checkpoint in it (a folder with {ARCHITECTURE} or config.json, or that of a run)"
        )
    return find_step(root, int(which)) if which.isdigit() else follow(root, which or LATEST)


def follow(root: Path, name: str) -> Path:
    """Return the checkpoint named in a run's pointer file, `latest` or `best`. Raises CheckpointError if the file or
    the checkpoint is missing."""
    if not (pointer := find_inside(root, name, str(root))).is_file():
        raise CheckpointError(f"{root.parent}@{name}: the run has kept none (zoo train keep_best=1 does)")
    found = read_bytes(pointer, MOST_POINTER).decode("utf-8", "replace").strip()
    known = re.fullmatch(r"step-[0-9]+", found) is not None  # anything else may be a path out of the run
    folder = find_inside(root, found, str(pointer)) if known else root
    if known:
        disk.recover(folder)
    if not known or not folder.is_dir():
        there = ", ".join(each.name for each in steps(root)) or "none"
        raise CheckpointError(
            f"{pointer}: names {shorten(found) or 'nothing'}, which is not there (there are: {there})"
        )
    return folder


def find_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of a folder of weights: the folder itself, or that around an average."""
    return folder.parent if folder.name in AVERAGES else folder


def find_run(folder: Path, place: Path | None = None) -> Path | None:
    """Find the run that a checkpoint, or an average of the weights in it, belongs to; None if there is none. `place` is
    the path that the user named: the run's folder, or another."""
    root = find_checkpoint(folder).parent
    run = place if place is not None and (place / CONFIG).is_file() else root.parent
    return run if root.name == CHECKPOINTS and (run / CONFIG).is_file() else None


def split_choice(path: str | Path) -> tuple[Path, str]:
    """Split `RUN@best` or `RUN@400` into the run and the choice. The choice is "" without an `@`, or if a folder has
    the whole name. Raises CheckpointError for an invalid path."""
    if "\0" in str(path):
        raise CheckpointError(f"{quote(str(path))}: is no path (a checkpoint, or the folder of a run)")
    try:
        path = Path(path).expanduser()
        run, at, which = path.name.rpartition("@")
        chosen = run and at and (which == BEST or (which.isascii() and which.isdigit()))
        return (path.with_name(run), which) if chosen and not path.exists() else (path, "")
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long, no home folder
        found = getattr(error, "strerror", None) or type(error).__name__
        raise CheckpointError(f"{shorten(str(path))}: cannot be followed, found {found} (a folder)") from error


def find_step(root: Path, step: int) -> Path:
    """Return the checkpoint of a step. Raises CheckpointError, with the existing checkpoints, if there is none."""
    for folder in (there := steps(root)):
        if read_step(folder) == step:
            return folder
    found = ", ".join(str(read_step(each)) for each in there) or "none"
    raise CheckpointError(f"{root}: no checkpoint of step {step} (there are: {found})")


def _find_average(path: Path) -> Path:
    """Find an average of the weights. `path` is RUN/ema, RUN/lawa, or the same inside a checkpoint."""
    folder = find(path.parent) / path.name
    if not folder.is_dir():
        asked = "ema=0.999" if path.name == "ema" else "lawa=5"
        raise CheckpointError(f"{path}: {folder.parent} has no such average of weights (zoo train {asked} keeps one)")
    return folder


def steps(root: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first. Other folders, such as a user's copy step-400-best, are left out."""
    numbers = {each: each.name.removeprefix("step-") for each in root.glob("step-*")}
    ours = [each for each, number in numbers.items() if number.isascii() and number.isdigit()]
    return sorted(ours, key=lambda each: int(numbers[each]))


def read_step(folder: Path) -> int:
    """Return the step in the name of a checkpoint's folder: 400 for `step-000400`."""
    return int(folder.name.removeprefix("step-"))


@contextmanager
def locked(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Lock a run's folder against a second training process. Raises CheckpointError with the id of the first.

    The operating system releases the lock when the process ends, even if it is killed. `say` is called with a line if
    the file system has no locks.
    """
    import platform

    if folder.resolve() in _launched:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        free = disk.try_lock(file.fileno())
        if free is False:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise CheckpointError(
                f"{folder}: {holder} is training in it (wait for it, stop it, or name another folder)"
            )
        if free is None:
            say(f"{folder}: its file system has no locks, so nothing keeps a second process from this run")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


_launched: set[Path] = set()
"""Folders that `locked_for_launch` has locked in this process."""


@contextmanager
def locked_for_launch(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Lock a run's folder before Hydra writes its first file. A call of `locked` in this process then does nothing."""
    with locked(folder, say):
        _launched.add(folder.resolve())
        try:
            yield
        finally:
            _launched.discard(folder.resolve())


def is_locked(folder: Path) -> bool:
    """Whether a process is training in a run's folder. False if the file system has no locks, or if this user may not
    read the lock."""
    try:
        with (folder / LOCK).open("rb") as file:  # a folder may be another user's
            return (folder / LOCK).is_file() and disk.try_lock(file.fileno()) is False
    except OSError:
        return False


def remember(folder: Path) -> None:
    """Write a run's folder into `runs/last`, if the run has a checkpoint."""
    if (folder / CHECKPOINTS / LATEST).exists():
        inside = folder.is_relative_to(Path.cwd())
        try:
            LAST_RUN.parent.mkdir(exist_ok=True)
            disk.write_text(LAST_RUN, f"{folder.relative_to(Path.cwd()) if inside else folder}\n")
        except OSError as error:  # the run itself is complete
            found = f"cannot be written, found {error.strerror}"
            print(f"{LAST_RUN}: {found} (--checkpoint {folder} names this run)", file=sys.stderr)


def last_run() -> Path:
    """Return the folder of the last run that was started in this working folder and has a checkpoint (`runs/last`).
    Raises ConfigError if there is none."""
    if not LAST_RUN.exists():
        raise ConfigError(
            f"checkpoint: there is no {LAST_RUN} here, so no last run (`zoo train` makes one, or --checkpoint DIR)"
        )
    folder = Path(read_bytes(LAST_RUN, MOST_POINTER).decode("utf-8", "replace").strip().replace("\0", ""))
    if not folder.is_dir():
        raise ConfigError(
            f"checkpoint: the last run, {shorten(str(folder))}, is gone (name another with --checkpoint DIR)"
        )
    return folder


def read_result(file: Path) -> dict[str, Any]:
    """Read a result.json or a measured.json; {} if there is none. Raises CheckpointError if it is unreadable."""
    from zoo.untrusted.run_types import Result

    return _read_if_there(file, Result)


def read_whole_result(file: Path) -> dict[str, Any]:
    """Read a result.json; {} if it is missing or unreadable, so that a sweep runs the job again."""
    try:
        return read_result(file)
    except CheckpointError:
        return {}


def read_sweep_record(folder: Path) -> dict[str, Any]:
    """Read a sweep's sweep.json; {} if there is none. Raises CheckpointError if it is unreadable, or names a job
    outside the sweep's folder."""
    from zoo.untrusted.run_types import SweepRecord

    found = _read_if_there(folder / SWEEP, SweepRecord)
    for name in found.get("jobs", {}):
        if find_inside(folder, name, f"{folder / SWEEP}: jobs").parent != folder:
            raise CheckpointError(f"{folder / SWEEP}: jobs: {quote(name)} is no folder of a job's (a name)")
    return found


def read_sweep(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the jobs of a sweep, in order, by folder name; {} if the folder has no sweep. Raises CheckpointError as
    `read_sweep_record` does."""
    return read_sweep_record(folder).get("jobs", {})


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; [] if there is none. A half-written last line is left out. Raises
    CheckpointError for any other faulty line."""
    from zoo.untrusted.run_types import MetricsLine

    if not is_file(file):
        return []
    found: list[dict[str, Any]] = []
    rows = read_bytes(file, MOST_METRICS).decode("utf-8", "replace").splitlines()
    for number, row in enumerate(rows, 1):
        try:
            found.append(json.loads(row))
        except (ValueError, RecursionError):
            if number < len(rows):
                raise CheckpointError(f"{file}:{number}: is no line of metrics, found {quote(row)}") from None
    return check_shape(found, list[MetricsLine], str(file))


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Read a run's environments: one mapping per start or resumption, oldest first; [] if there is no file. Raises
    CheckpointError if the file is unreadable."""
    file = folder / ENVIRONMENT
    shape = list[dict[str, str | int | float | None]]
    return read_json(file, shape, most=SETTINGS, largest=COUNTED) if is_file(file) else []


def read_crowding(folder: Path) -> float:
    """Return the machine's load per CPU at a run's first start. Above 1, other programs slowed it. 0 if unknown."""
    for first in read_environments(folder)[:1]:
        cpus = re.search(r"of (\d+) CPUs", str(first.get("threads")))
        if cpus and first.get("load") is not None:
            return float(first["load"] or 0) / int(cpus[1])
    return 0.0


def add_environment(folder: Path, environment: Mapping[str, Any]) -> None:
    """Append the environment of a run's start or resumption."""
    disk.write_text(folder / ENVIRONMENT, json.dumps([*read_environments(folder), environment], indent=2) + "\n")


def _read_if_there(file: Path, shape: Any) -> dict[str, Any]:
    return read_json(file, shape, most=SETTINGS, largest=COUNTED) if is_file(file) else {}


def is_file(path: Path) -> bool:
    """Whether a path is a file. False if this user may not see it."""
    try:
        return path.is_file()
    except OSError:
        return False


def results(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the outcomes of a sweep's jobs, given by folder name. A job without an outcome has the status "cut off",
    or "not started" if it has no folder."""

    def missing(name: str) -> dict[str, Any]:
        return {"overrides": [], "status": "cut off" if (folder / name).is_dir() else "not started"}

    return [missing(name) | read_whole_result(folder / name / RESULT) for name in names]
