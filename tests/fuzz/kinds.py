"""The kinds of cases. Each is a function that writes its files into the case's folder and gives its command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from .values import EVIL, SECRET, Place


@dataclass(frozen=True)
class Case:
    """One command line, what it finds on standard input, and what is odd about it."""

    words: list[str]
    about: str
    stdin: bytes = b""
    exit: int | None = None
    """The exit code that it has to end with, where there is one right one."""


@dataclass(frozen=True)
class Kind:
    """A kind of cases; `quick` of them are in the tests' quick tier."""

    name: str
    make: Callable[[Random, Place], Case]
    quick: int


KINDS: dict[str, Kind] = {}


def kind(quick: int) -> Callable[[Callable[[Random, Place], Case]], Callable[[Random, Place], Case]]:
    """Register a function as a kind of cases."""

    def register(make: Callable[[Random, Place], Case]) -> Callable[[Random, Place], Case]:
        KINDS[make.__name__] = Kind(make.__name__, make, quick)
        return make

    return register


def lay_out(place: Place) -> None:
    """Make the folders of a case, and beside them what no case may read, change or leave."""
    for folder in (place.folder, place.outside / "folder", place.root / "home", place.root / "tmp"):
        folder.mkdir(parents=True)
    for name in ("secret.json", "secret", "folder/config.json", "folder/model.safetensors"):
        (place.outside / name).write_text(f'{{"model_type": "llama", "note": "{SECRET}"}}\n')
    (place.outside / "secret.yaml").write_text(f"model_type: evil\nlike: llama\nnote: {SECRET}\n")


def make_case(name: str, seed: int, number: int, place: Place) -> Case:
    """Make a case, its files in its folder, which is the working folder from then on."""
    lay_out(place)
    os.chdir(place.folder)
    os.symlink("loop", "loop")
    return KINDS[name].make(Random(f"{name}/{seed}/{number}"), place)


def copy_seeds(place: Place, *names: str) -> None:
    """Copy seeds into the case's folder."""
    for name in names:
        source = place.seeds / name
        if source.is_dir():
            shutil.copytree(source, place.folder / name, symlinks=True)
        else:
            shutil.copy(source, place.folder / source.name)


def choose_words(rng: Random, choices: Sequence[str | Iterable[str]]) -> list[str]:
    """Choose one of several command lines."""
    found = rng.choice(list(choices))
    return found.split() if isinstance(found, str) else list(found)


def write_evil(place: Place, *folders: str) -> None:
    """Put a config that names code where `/evil` is looked for."""
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "evil.yaml"), "w") as file:
            file.write(EVIL.format(canary=place.canary))
