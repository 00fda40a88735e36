"""Write the playground's page, with all files that it loads, into a gallery's folder."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from zoo.gallery.playground.form_data import list_form
from zoo.gallery.playground.live_price import answer_request
from zoo.gallery.playground.packing import pack
from zoo.gallery.playground.pyodide import FILES, LOCK, compile_zips, find_pyodide, find_wheel
from zoo.gallery.rendering import render_template

HOME = Path(__file__).parent
PLACE = "playground/index.html"

ASSETS = ("playground.js", "playground.css", "worker.js")

FIRST = "defaults: [/model/llama3-8b@_here_]\n"
"""The page's initial text. Its price is written into the page."""


def write_page(site: Path, **values: Any) -> int:
    """Write the page into the folder of a site. The initial text's price is included, so that it shows before the
    pricing code has loaded. Return the number of files."""
    site = site.resolve()
    folder = (site / PLACE).parent
    folder.mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        shutil.copy(HOME / name, folder)
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):  # the text is written to a file to be priced
        first = answer_request({"text": FIRST, "setup": {}})
    data = {"form": list_form(), "text": FIRST, "first": first}
    (folder / "data.js").write_text(f"const DATA = {json.dumps(data)};\n", encoding="utf-8")
    (site / PLACE).write_text(render_template("playground.html", PLACE, **values), encoding="utf-8")
    return len(ASSETS) + 2


def write_parts(site: Path, pyodide: Path | None) -> bool:
    """Write the page's pricing code: Pyodide and the zip of modules. `pyodide` is a folder with Pyodide's files (None:
    Zoo's cache, filled from the registries if needed). Return whether the modules could be compiled, which halves the
    time to the first price. Raises ConfigError for unavailable files.

    The largest file is compressed, so that any server sends it small; the worker unpacks it.
    """
    parts, folder = find_pyodide(pyodide), (site / PLACE).parent
    with tempfile.TemporaryDirectory() as home:
        packed = Path(home) / "zoo.zip"
        pack(packed, find_wheel(parts))
        compiled = compile_zips(parts, packed, folder)
        if not compiled:
            shutil.copy(packed, folder)
    for name in FILES:
        if name.endswith(".wasm"):
            (folder / f"{name}.gz").write_bytes(gzip.compress((parts / name).read_bytes(), 9, mtime=0))
        elif not (compiled and name.endswith(".zip")):
            shutil.copy(parts / name, folder)
    (folder / "pyodide-lock.json").write_text(json.dumps(LOCK), encoding="utf-8")
    return compiled
