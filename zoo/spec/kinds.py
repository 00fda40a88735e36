"""Look up the kinds of an axis by name, importing the module of a kind on first use.

A model uses few kinds, and importing all of them takes as long as pricing it. There is no table of modules: the sources
are searched for class statements such as `kind="mamba"`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from zoo.spec.spec import Spec


class KindSource(NamedTuple):
    """A module of a package, and its source file, which may not exist."""

    module: str
    file: Path

    def names(self, kind: str) -> bool:
        """Whether the source has a class of this kind, of any axis. True if the file cannot be read."""
        try:
            return f'kind="{kind}"'.encode(errors="surrogatepass") in self.file.read_bytes()
        except OSError:  # a package without sources
            return True


@functools.cache
def list_sources(package: str) -> tuple[KindSource, ...]:
    """List the modules of a package and of its subpackages, by name."""
    path = importlib.import_module(package).__path__
    found = pkgutil.walk_packages(path, f"{package}.")
    return tuple(
        KindSource(each.name, Path(each.module_finder.path, f"{each.name.rpartition('.')[2]}.py"))  # type: ignore[union-attr]
        for each in found
        if not each.ispkg
    )


class Kinds(MutableMapping[str, "type[Spec]"]):
    """The kinds of one axis: of registered classes, and of modules that are not imported yet.

    Iteration orders kinds by module, with the axis' own module `home` first, and within a module by their place in the
    file. It does not depend on earlier imports.

    Threads may look up kinds at the same time. Only Python's import locks are taken: under another lock, an import here
    could deadlock with a thread that is importing the same module.
    """

    searched: ClassVar[set[str]] = set()
    """Packages whose modules need not be imported in advance: kinds are found by searching their sources."""

    def __init__(self, home: str) -> None:
        self.home = home
        self._known: dict[str, type[Spec]] = {}
        self._missing: set[str] = set()  # kinds that no source has

    def __getitem__(self, kind: Any) -> type[Spec]:
        if not isinstance(kind, str):  # what a file has in its place, perhaps a list, which cannot be hashed
            raise KeyError(kind)
        if kind not in self._known and kind not in self._missing:
            self._import(kind)
        choice = self._known[kind]
        if choice.__module__ in sys.modules:  # waits if another thread has come as far as this class
            importlib.import_module(choice.__module__)
        return choice

    def __setitem__(self, kind: str, choice: type[Spec]) -> None:
        """Register a kind. Raises TypeError if another class has its name. The same class may be defined again."""
        names = [f"{each.__module__}.{each.__qualname__}" for each in (self._known.get(kind, choice), choice)]
        if names[0] != names[1]:
            raise TypeError(f"kind={kind!r} is {names[0]}'s, and {names[1]} states it too (another name)")
        self._known[kind] = choice

    def __delitem__(self, kind: str) -> None:
        del self._known[kind]

    def __iter__(self) -> Iterator[str]:
        for source in self._list_sources():
            importlib.import_module(source.module)
        modules = {kind: choice.__module__ for kind, choice in list(self._known.items())}
        return iter(sorted(modules, key=lambda kind: (modules[kind] != self.home, modules[kind])))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _import(self, kind: str) -> None:
        """Import modules whose sources name a kind, until one registers it. Those in the axis' folder come first,
        beginning with the one named like the kind."""
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

    def _list_sources(self) -> tuple[KindSource, ...]:
        package = next((each for each in self.searched if self.home.startswith(f"{each}.")), None)
        return list_sources(package) if package else ()
