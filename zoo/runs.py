"""Find what runs left behind: the names of their files, the newest checkpoint, the last run of this folder.

RUN/lock                             held by the process that trains, with its id and its machine
RUN/checkpoints/latest               the name of the newest checkpoint
RUN/checkpoints/best                 the name of that with the best evaluation, where such are kept
RUN/checkpoints/step-000400/         a checkpoint (zoo/checkpoint/store.py)
RUN/result.json                      the run's outcome
RUN/metrics.jsonl                    a line for each step that was recorded, and for each evaluation
RUN/metrics.csv, samples.txt         the same as a table, and what the model wrote at each evaluation
RUN/loss.png, index.html             a picture of the losses, and the run's page
RUN/environment.json                 where the run computed, each time that it was started or resumed
RUN/config.yaml, model.yaml          the training config, and the model's Spec
RUN/tokenizer/                       the files of a tokenizer that the config names by its path, as they were
runs/last                            the folder of the last run, for `zoo generate`
SWEEP/sweep.json                     the jobs of a sweep, each by the name of its folder (zoo/jobs/sweep.py)
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
from zoo.untrusted.paths import check_settings, find_inside
from zoo.untrusted.text import quote, shorten

ARCHITECTURE, WEIGHTS = "zoo.yaml", "model.safetensors"
CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"
AVERAGES = ("ema", "lawa")  # averages of the weights in a checkpoint: `RUN/ema` is that of the newest one
COUNTERS = "training.json"  # of a checkpoint that a run goes on from
RESULT, METRICS = "result.json", "metrics.jsonl"
TABLE, SAMPLES = "metrics.csv", "samples.txt"
PICTURE, PAGE, ENVIRONMENT = "loss.png", "index.html", "environment.json"
MEASURED = "measured.json"  # what was measured of a run after its training
CONFIG, MODEL, TOKENIZER = "config.yaml", "model.yaml", "tokenizer"
LOCK = "lock"
SWEEP = "sweep.json"
LAST_RUN = Path("runs", "last")
MOST_POINTER = 1 << 16  # bytes of a file that holds a name
MOST_METRICS = 1 << 30  # bytes of the largest file of metrics: a line for each of some million steps


def find(path: str | Path) -> Path:
    """The checkpoint folder that a path means: itself, the newest of a run, the best (`RUN@best`) or that of a step
    (`RUN@400`), or an average in it (`RUN/ema`). Raises CheckpointError."""
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
    """The checkpoint that a pointer of a run names, `latest` or `best`. Raises CheckpointError."""
    if not (pointer := find_inside(root, name, str(root))).is_file():
        raise CheckpointError(f"{root.parent}@{name}: the run has kept none (zoo train keep_best=1 does)")
    found = read_bytes(pointer, MOST_POINTER).decode("utf-8", "replace").strip()
    known = re.fullmatch(r"step-[0-9]+", found) is not None  # else it may be a path to elsewhere
    folder = find_inside(root, found, str(pointer)) if known else root
    if known:
        disk.recover(folder)
    if not known or not folder.is_dir():
        there = ", ".join(each.name for each in steps(root)) or "none"
        raise CheckpointError(
            f"{pointer}: names {shorten(found) or 'nothing'}, which is not there (there are: {there})"
        )
    return folder


def split_choice(path: str | Path) -> tuple[Path, str]:
    """Split `RUN@best` and `RUN@400`; nothing is chosen where a folder has that very name. Raises CheckpointError for
    what is no path."""
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
    """The checkpoint of a step. Raises CheckpointError with those that are there."""
    for folder in (there := steps(root)):
        if read_step(folder) == step:
            return folder
    found = ", ".join(str(read_step(each)) for each in there) or "none"
    raise CheckpointError(f"{root}: no checkpoint of step {step} (there are: {found})")


def _find_average(path: Path) -> Path:
    """The average of the weights, named last in `path`, of the checkpoint or run before it."""
    folder = find(path.parent) / path.name
    if not folder.is_dir():
        asked = "ema=0.999" if path.name == "ema" else "lawa=5"
        raise CheckpointError(f"{path}: {folder.parent} has no such average of weights (zoo train {asked} keeps one)")
    return folder


def steps(root: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Other folders, such as a copy that the user named step-400-best, are not
    among them."""
    numbers = {each: each.name.removeprefix("step-") for each in root.glob("step-*")}
    ours = [each for each, number in numbers.items() if number.isascii() and number.isdigit()]
    return sorted(ours, key=lambda each: int(numbers[each]))


def read_step(folder: Path) -> int:
    """The step of a checkpoint that `steps` lists."""
    return int(folder.name.removeprefix("step-"))


@contextmanager
def locked(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Keep a second process from training in a run's folder. Raises CheckpointError with the id of the first.

    The operating system drops the lock of a process that ends, however it ends. `say` is told of a file system that
    has no locks.
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
"""Folders whose lock this process took before it handed the run to Hydra."""


@contextmanager
def locked_for_launch(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Take a run's lock before Hydra writes its first file. The run in this process then finds it taken for it."""
    with locked(folder, say):
        _launched.add(folder.resolve())
        try:
            yield
        finally:
            _launched.discard(folder.resolve())


def is_locked(folder: Path) -> bool:
    """Whether a process is training in a run's folder, as far as its file system and its permissions tell."""
    try:
        with (folder / LOCK).open("rb") as file:  # a folder may be another user's
            return (folder / LOCK).is_file() and disk.try_lock(file.fileno()) is False
    except OSError:
        return False


def remember(folder: Path) -> None:
    """Note a run as the last one, if it has a checkpoint."""
    if (folder / CHECKPOINTS / LATEST).exists():
        inside = folder.is_relative_to(Path.cwd())
        try:
            LAST_RUN.parent.mkdir(exist_ok=True)
            disk.write_text(LAST_RUN, f"{folder.relative_to(Path.cwd()) if inside else folder}\n")
        except OSError as error:  # the run is whole, wherever it is
            found = f"cannot be written, found {error.strerror}"
            print(f"{LAST_RUN}: {found} (--checkpoint {folder} names this run)", file=sys.stderr)


def last_run() -> Path:
    """The folder of the last run that was started here and has a checkpoint. Raises ConfigError when there is none."""
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
    """The outcome in a result.json, or the measurements in a measured.json; empty where there is none. Raises
    CheckpointError."""
    from zoo.untrusted.shapes import Result

    return _read_if_there(file, Result)


def read_whole_result(file: Path) -> dict[str, Any]:
    """The outcome in a result.json; empty where there is none that can be read: a job that left none runs again."""
    try:
        return read_result(file)
    except CheckpointError:
        return {}


def read_sweep_record(folder: Path) -> dict[str, Any]:
    """What a sweep's sweep.json holds; empty where there is none. Raises CheckpointError."""
    from zoo.untrusted.shapes import SweepRecord

    found = _read_if_there(folder / SWEEP, SweepRecord)
    for name in found.get("jobs", {}):
        if find_inside(folder, name, f"{folder / SWEEP}: jobs").parent != folder:
            raise CheckpointError(f"{folder / SWEEP}: jobs: {quote(name)} is no folder of a job's (a name)")
    return found


def read_sweep(folder: Path) -> dict[str, dict[str, Any]]:
    """The jobs of the sweep in a folder, in order, by the names of their own folders; none where it is no sweep's.
    Raises CheckpointError."""
    return read_sweep_record(folder).get("jobs", {})


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read a file of metrics; none where there is no file. The last line may be half written, and is left out. Raises
    CheckpointError."""
    from zoo.untrusted.shapes import MetricsLine

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
    """Read where a run computed: one mapping for each time that it was started or resumed, oldest first. Raises
    CheckpointError."""
    file = folder / ENVIRONMENT
    shape = list[dict[str, str | int | float | None]]
    return read_json(file, shape, most=SETTINGS, largest=COUNTED) if is_file(file) else []


def add_environment(folder: Path, environment: Mapping[str, Any]) -> None:
    """Note where a run computes from now on."""
    disk.write_text(folder / ENVIRONMENT, json.dumps([*read_environments(folder), environment], indent=2) + "\n")


def _read_if_there(file: Path, shape: Any) -> dict[str, Any]:
    return read_json(file, shape, most=SETTINGS, largest=COUNTED) if is_file(file) else {}


def is_file(path: Path) -> bool:
    """Tell whether there is a file that this user may see."""
    try:
        return path.is_file()
    except OSError:
        return False


def results(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """The outcome of each job of a sweep, by the name of its folder. A job that was cut off has left none."""
    missing = {"overrides": [], "status": "cut off"}
    return [missing | read_whole_result(folder / name / RESULT) for name in names]
