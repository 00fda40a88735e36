"""Write the playground's page with all that it loads into a gallery's folder."""

from __future__ import annotations

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

FIRST = "defaults: [/model/llama3-8b@_here_]\n"
"""The text that the page shows before it has a change: its answer is written into the page."""


def write_playground(site: Path, pyodide: Path | None, **values: Any) -> bool:
    """Write the playground into the folder of a site. `pyodide` has Pyodide's files (None: Zoo's cache, filled from the
    registries). Return whether the modules could be compiled, which halves the time to the first price. Raises
    ConfigError for files that cannot be had."""
    parts = find_pyodide(pyodide)
    folder = site / "playground"
    folder.mkdir(parents=True, exist_ok=True)
    compiled = _write_parts(parts, folder)
    for name in ("playground.js", "playground.css", "worker.js"):
        shutil.copy(HOME / name, folder)
    first = answer_request({"text": FIRST, "setup": {}})
    data = {"form": list_form(), "text": FIRST, "first": first}
    (folder / "data.js").write_text(f"const DATA = {json.dumps(data)};\n", encoding="utf-8")
    (site / PLACE).write_text(render_template("playground.html", PLACE, **values), encoding="utf-8")
    return compiled


def _write_parts(parts: Path, folder: Path) -> bool:
    """Write Pyodide and the zip of modules. The largest file is written compressed, so that any server sends it small;
    the worker unpacks it."""
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
