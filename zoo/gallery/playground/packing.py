"""Zip the modules that pricing imports, for Pyodide: Zoo's torch-free packages, their configuration, and the libraries
that they use."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import ConfigError
from zoo.paths import conf_dir

ZOO = Path(__file__).parents[2]

LAYERS = (
    "analysis compose costs distributed drawing families gallery/playground grammar kernels model report spec untrusted"
)
"""Folders of Zoo that pricing and drawing may import. The other folders need torch or a terminal."""

MODULES = "gallery/__init__ gallery/charts"
"""Further files of Zoo, in addition to the folders of LAYERS and the files at the top."""

LEFT_OUT = (
    *("analysis/scaling/", "analysis/verdict/", "report/verdict", "report/run_page"),
    *("antlr4/xpath/", "hydra/extra/", "hydra/test_utils/"),
    *("packaging/licenses/", "packaging/metadata", "packaging/pylock", "pydantic/v1/", "pydantic/mypy"),
)
"""Prefixes of paths that pricing does not read: fits and verdicts of experiments, tests, licences."""

LIBRARIES = "hydra omegaconf antlr4 yaml pydantic packaging annotated_types typing_inspection typing_extensions"
"""Python packages that Zoo's folders import, taken from this environment with its versions. pydantic_core is compiled;
its Pyodide build is added separately (`zoo.gallery.playground.pyodide`)."""

GROUPS = "activation attention block cross family ffn hardware model norm parametrisation position rope_scaling router"
"""Folders of conf/ that models and pricing read. The folders for training and its data are left out."""


def pack(file: Path, wheel: Path | None = None) -> int:
    """Write the zip, with the files of a `wheel` if given. Return the number of files in it. Raises ConfigError for a
    library that is not installed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(_list_files()):
            archive.write(path, name)
        if wheel is not None:
            with zipfile.ZipFile(wheel) as built:
                for name in built.namelist():
                    if name.endswith((".py", ".so")):
                        archive.writestr(name, built.read(name))
        return len(archive.namelist())


def _list_files() -> Iterator[tuple[str, Path]]:
    """Yield each file with its name in the zip, laid out as in site-packages."""
    for path in [*ZOO.glob("*.py"), *(ZOO / f"{module}.py" for module in MODULES.split())]:
        yield f"zoo/{path.relative_to(ZOO).as_posix()}", path
    for layer in LAYERS.split():
        yield from (
            (f"zoo/{place}", ZOO / place)
            for place in _list_inside(ZOO, ZOO / layer, (".py", ".json"))
            if not place.startswith(LEFT_OUT)
        )
    conf = conf_dir()
    for place in _list_inside(conf, conf, (".yaml",)):
        if "/" not in place or place.partition("/")[0] in GROUPS.split():
            yield f"zoo/conf/{place}", conf / place
    for library in LIBRARIES.split():
        yield from _list_library(library)


def _list_inside(root: Path, folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.suffix in suffixes:
            yield path.relative_to(root).as_posix()


def _list_library(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the Python files of a library. Its compiled files are left out, because they are for this machine."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ConfigError(f"playground: {name} is not installed, which the pricing in the browser imports")
    origin = Path(found.origin)
    if origin.stem != "__init__":
        yield origin.name, origin
        return
    root = origin.parents[1]
    for place in _list_inside(root, origin.parent, (".py",)):
        if not place.startswith(LEFT_OUT):
            yield place, root / place
