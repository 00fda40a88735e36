"""Where the files that ship with Zoo lie, and where it keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def conf_dir() -> Path:
    """The configuration tree."""
    return _find_shipped("conf")


def read_conf(place: str) -> Any:
    """Read a file of the configuration tree, such as "attention/mha"."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it: ten times as fast
    return yaml.load((conf_dir() / f"{place}.yaml").read_text(encoding="utf-8"), loader)


def list_conf(folder: str) -> list[str]:
    """List the names of the files in a folder of the configuration tree."""
    return sorted(path.stem for path in (conf_dir() / folder).glob("*.yaml"))


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
