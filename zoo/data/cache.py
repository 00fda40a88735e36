"""The cache of prepared data: a folder for each key, made once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from zoo.disk import complete_folder, remove_drafts
from zoo.errors import ConfigError
from zoo.paths import find_cache_folder


def fill_cache(name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder `name` of the cache. Where there is none, `build` fills a draft that gets the name when
    complete.

    A draft that a killed process left is filled further: `build` finds in it what that one wrote. Of two processes that
    build at once, the second fills a draft of its own and drops it if the first was faster: both hold the same.
    """
    folder = find_cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder.parent)
        tempfile.TemporaryFile(dir=folder.parent).close()  # raises where nothing may be written
    except OSError as error:
        what = f"cannot write to {folder.parent}, found {error.strerror}"
        raise ConfigError(f"ZOO_CACHE: {what} (set ZOO_CACHE to a folder of yours)") from error
    with complete_folder(folder) as draft:
        build(draft)
    return folder
