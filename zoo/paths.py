"""Where the files that ship with Zoo lie, and where it keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def conf_dir() -> Path:
    """The configuration tree."""
    return _find_shipped("conf")


def recipes_dir() -> Path:
    """The recipes."""
    return _find_shipped("recipes")


def _find_shipped(name: str) -> Path:
    """Find a folder that ships with Zoo: inside the package of an installed wheel, else beside that of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def find_cache_folder() -> Path:
    """Find the cache: `$ZOO_CACHE`, or a folder where the platform keeps caches."""
    if stated := os.environ.get("ZOO_CACHE"):
        return Path(stated).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zoo" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"
