"""Where the files that ship with Zoo lie, and where it keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def conf_dir() -> Path:
    """The configuration tree: `zoo/conf` of an installed wheel, else the `conf` beside the package of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def recipes_dir() -> Path:
    """The recipes: `zoo/recipes` of an installed wheel, else the `recipes` beside the package of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_cache_folder() -> Path:
    """Find the cache: `$ZOO_CACHE`, or a folder where the platform keeps caches."""
    if stated := os.environ.get("ZOO_CACHE"):
        return Path(stated).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zoo" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"
