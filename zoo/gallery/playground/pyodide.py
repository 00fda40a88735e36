"""Find Pyodide's files and a pydantic_core wheel for it, check their hashes, and compile a zip of modules with Pyodide.

The files are downloaded once, with npm and pip, into Zoo's cache; later builds need no network.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from zoo.disk import replace_folder
from zoo.errors import ConfigError, short
from zoo.paths import find_cache_folder

VERSION, PYTHON, PLATFORM = "314.0.7", "3.14", "pyemscripten_2026_0_wasm32"
"""Version of the npm package `pyodide`, its Python version, and its wheels' platform."""

FILES = {
    "pyodide.mjs": "6f1d60f7bf529beb300f0f47983c921d3982363640ba20af0e38efdddbc66109",
    "pyodide.asm.mjs": "f7cdc8ece80678ceb712f8e65ebe6d3a83203a180c399865f49612a051693635",
    "pyodide.asm.wasm": "cc36e3cab04fdfc9a63ff13eb52eae2b911bf46c025cc7b281f394bd3de1d5e6",
    "python_stdlib.zip": "fa1957e5777068fc4f7437f96d860ae2fbe9c19732ba06c84e004ec16dd7dd7a",
}
"""Files of the npm package that the page loads, with their SHA-256."""

LOCK = {
    "info": {"abi_version": "2026_0", "arch": "wasm32", "platform": "emscripten_5_0_3", "python": "3.14.2"},
    "packages": {},
}
"""Pyodide's list of packages. It lists none, because the zip has all modules."""

COMPILE = Path(__file__).parent / "compile.mjs"


def find_pyodide(folder: Path | None = None) -> Path:
    """Return a folder with Pyodide's files and the wheel of pydantic_core: the given folder, or Zoo's cache, which is
    filled from the registries on first use. Raises ConfigError for missing files or wrong hashes, and if files cannot
    be downloaded."""
    home = folder or find_cache_folder() / f"pyodide-{VERSION}"
    if folder is None and not (home / "pyodide.asm.wasm").is_file():
        home.parent.mkdir(parents=True, exist_ok=True)
        with replace_folder(home) as draft:
            _fetch_package(draft)
    check_files(home)
    if not find_wheel(home):
        _fetch_wheel(home)
    return home


def check_files(folder: Path) -> None:
    """Raise ConfigError unless the folder has each file of the npm package with its hash."""
    for name, known in FILES.items():
        if not (folder / name).is_file():
            raise ConfigError(f"playground: {folder} has no {name} (the npm package pyodide {VERSION}, unpacked)")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known:
            raise ConfigError(f"playground: {folder / name} is not the file of pyodide {VERSION} (its hash differs)")


def find_wheel(folder: Path) -> Path | None:
    """Find the wheel, built for Pyodide, of the installed version of pydantic_core. None if there is none."""
    return next(iter(folder.glob(f"pydantic_core-{_core_version()}-*-{PLATFORM}.whl")), None)


def _core_version() -> str:
    return importlib.metadata.version("pydantic_core")


def _fetch_package(folder: Path) -> None:
    """Download the npm package and unpack it. npm checks the hash."""
    with tempfile.TemporaryDirectory() as home:
        _call(["npm", "pack", f"pyodide@{VERSION}", "--pack-destination", home], "pyodide", "npm")
        (archive,) = Path(home).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(home, filter="data")
        for name in (*FILES, "package.json"):
            shutil.copy(Path(home) / "package" / name, folder)


def _fetch_wheel(folder: Path) -> None:
    """Download the wheel of pydantic_core. pip checks the hash."""
    choice = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--python-version", PYTHON]
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *choice]
    _call([*words, f"pydantic_core=={_core_version()}"], f"pydantic_core {_core_version()} for Pyodide", "pip")


def _call(words: Sequence[str], what: str, tool: str) -> None:
    """Run a program. Raises ConfigError with the last line of its output if it fails."""
    cure = "with a network once, or --pyodide FOLDER with the files"
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ConfigError(f"playground: {what} cannot be fetched, {tool}: {short(error)} ({cure})") from None
    if done.returncode:
        said = " ".join((done.stderr.strip() or "it failed").splitlines()[-1:])[:200]
        raise ConfigError(f"playground: {what} cannot be fetched, {tool} said: {said} ({cure})")


def compile_zips(pyodide: Path, packed: Path, out: Path) -> bool:
    """Compile the modules of `packed` and of Pyodide's standard library to bytecode, with Node, into two zips in `out`.
    Return False without Node. Compiling in the browser would double the time to the first price."""
    node = shutil.which("node")
    if node is None:
        return False
    request = json.dumps({"pyodide": str(pyodide.resolve()), "packed": str(packed), "out": str(out), "lock": LOCK})
    done = subprocess.run([node, str(COMPILE), request], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"playground: Pyodide fails under Node: {done.stderr.strip()[-200:]}")
    return True
