"""Look up the kinds of an axis by name, importing the module of a kind when it is first asked for.

One model names few of the kinds there are, and importing all of them takes as long as pricing it. No table says which
module holds a kind: its class statement does, `kind="mamba"`, and the sources are searched for these words.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from zoo.spec.spec import Spec


completing = threading.RLock()
"""Held while kinds are imported, a class becomes a dataclass and pydantic builds its validator, all at the first use: a
second thread would meet a class half made."""


class Source(NamedTuple):
    """A module of a package, and the file that it is read from, which may not be there."""

    module: str
    file: Path

    def names(self, kind: str) -> bool:
        """Whether a class in it may be of this kind, of some axis."""
        try:
            return f'kind="{kind}"'.encode() in self.file.read_bytes()
        except OSError:  # a package without sources
            return True


@functools.cache
def list_sources(package: str) -> tuple[Source, ...]:
    """List the modules of a package and of those in it, by name."""
    path = importlib.import_module(package).__path__
    found = pkgutil.walk_packages(path, f"{package}.")
    return tuple(
        Source(each.name, Path(each.module_finder.path, f"{each.name.rpartition('.')[2]}.py"))  # type: ignore[union-attr]
        for each in found
        if not each.ispkg
    )


class Kinds(MutableMapping[str, "type[Spec]"]):
    """The kinds of one axis: those registered by classes that exist, and those of modules that nothing imported yet.

    Kinds are in the order of their modules, those of the axis' own module `home` first, and within one as they stand
    there: whatever was imported before.
    """

    searched: ClassVar[set[str]] = set()
    """The packages with modules that need not be imported before their kinds are asked for."""

    def __init__(self, home: str) -> None:
        self.home = home
        self._known: dict[str, type[Spec]] = {}
        self._missing: set[str] = set()  # that no source names

    def __getitem__(self, kind: str) -> type[Spec]:
        if kind not in self._known and kind not in self._missing:
            with completing:
                self._import(kind)
        return self._known[kind]

    def __setitem__(self, kind: str, choice: type[Spec]) -> None:
        self._known[kind] = choice

    def __delitem__(self, kind: str) -> None:
        del self._known[kind]

    def __iter__(self) -> Iterator[str]:
        with completing:
            for source in self._list_sources():
                importlib.import_module(source.module)
        modules = {kind: choice.__module__ for kind, choice in self._known.items()}
        return iter(sorted(modules, key=lambda kind: (modules[kind] != self.home, modules[kind])))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _import(self, kind: str) -> None:
        """Import the modules whose sources name a kind, until one has it. Those of the axis' folder come first, and
        among these the one with the kind's name."""
        folder = self.home.rpartition(".")[0]
        near = sorted(
            self._list_sources(), key=lambda each: (each.module != f"{folder}.{kind}", folder not in each.module)
        )
        for source in near:
            if source.names(kind):
                importlib.import_module(source.module)
                if kind in self._known:
                    return
        self._missing.add(kind)

    def _list_sources(self) -> tuple[Source, ...]:
        package = next((each for each in self.searched if self.home.startswith(f"{each}.")), None)
        return list_sources(package) if package else ()
