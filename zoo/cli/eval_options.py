"""Read and check the options of `zoo eval`, and show the evaluation's progress."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.files import read_text
from zoo.errors import ConfigError, refuse

if TYPE_CHECKING:
    from zoo.training.evaluate import NamedText


def tell_apart(folder: Path | None, overrides: list[str]) -> tuple[Path | None, list[str]]:
    """Treat a first argument that is an override, as in `zoo eval data=text`, as an override and not as the folder."""
    if folder is not None and "=" in str(folder) and not folder.exists():
        return None, [str(folder), *overrides]
    return folder, overrides


def choose_mode(asked: Mapping[str, Any]) -> str | None:
    """Return the requested mode (tasks, similarity or retrieval); None for a text. Raises ConfigError for two modes."""
    chosen = [name for name, value in asked.items() if value]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[1]}: was requested together with --{chosen[0]} (one of the two)")
    return chosen[0] if chosen else None


def refuse_idle(given: Mapping[str, Any], taken: Collection[str], mode: str | None) -> None:
    """Raise ConfigError for the options in `given` that have no effect, because the mode does not take them
    (`taken`)."""
    beside = f"beside --{mode}" if mode else "on a text"
    idle = (name for name, value in given.items() if value not in (None, []) and name not in taken)
    refuse(f"{name}: has no effect {beside} (leave it out)" for name in idle)


def read_texts(files: list[Path]) -> list[NamedText]:
    """Read files unchanged, line ends included, since all bytes are counted. Raises ConfigError with all faults."""
    from zoo.training.evaluate import NamedText

    found, faults = [], []
    for file in files:
        try:
            found.append(NamedText(f"file: {file}", read_text(file, "file")))
        except ConfigError as error:
            faults += error.faults
    refuse(faults)
    return found


@contextmanager
def showing_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that updates a progress bar on standard error, if that is a terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from zoo.report.console import make_bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with make_bar(*columns) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield progress
