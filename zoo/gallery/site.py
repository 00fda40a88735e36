"""Write the gallery into a folder: a page a model and the pages around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zoo
from zoo.compose.catalogue import read_models
from zoo.errors import ConfigError
from zoo.gallery.model_facts import collect_model
from zoo.gallery.rendering import ASSETS, render_template

MARK = "figures.js"
"""The file by which a folder is known as a gallery: it has the figures that pages sort and compare by."""


def write_site(folder: Path, targets: Sequence[str] = ()) -> int:
    """Write the site of the packaged models, and of the models named by `targets`, into a folder; return the number of
    files. Raises ConfigError for a folder that holds something else, and for a model that cannot be read."""
    if folder.exists() and not (folder.is_dir() and ((folder / MARK).is_file() or not any(folder.iterdir()))):
        raise ConfigError(f"gallery: {folder} is there and is no gallery (a new folder, or one that zoo gallery wrote)")
    count = 0
    for place, text in _list_pages(targets):
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        count += 1
    for asset in ASSETS.iterdir():
        shutil.copy(asset, folder)
        count += 1
    return count


def _list_pages(targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """List the files of the site with their texts."""
    models = [
        collect_model(each["name"], each) for each in read_models() if not each["note"].startswith("another name")
    ]
    models += [collect_model(target, {}) for target in targets]
    for each in models:
        yield each.place, _render(each.place, "model.html", facts=each, params=each.figures["params"])
    yield "index.html", _render("index.html", "index.html", models=models)
    yield MARK, f"const FIGURES = {json.dumps({each.name: each.figures for each in models})};\n"


def _render(place: str, template: str, **values: Any) -> str:
    return render_template(template, place, version=zoo.__version__, **values)
