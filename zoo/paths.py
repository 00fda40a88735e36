"""Find the files that ship with Zoo, and the folder of its cache."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any


def conf_dir() -> Path:
    """Return the folder of the configuration tree (conf/)."""
    return _find_shipped("conf")


def read_conf(place: str) -> Any:
    """Read a file of the configuration tree, such as "attention/mha", as plain data."""
    return load_yaml(conf_dir() / f"{place}.yaml")


def load_yaml(file: Path) -> Any:
    """Read a YAML file as plain data. Raises YAMLError or UnicodeDecodeError for an invalid file."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if PyYAML was built with it: ten times as fast
    return yaml.load(file.read_text(encoding="utf-8"), loader)


def list_conf(folder: str) -> list[str]:
    """List the names of the files in a folder of the configuration tree."""
    return sorted(path.stem for path in (conf_dir() / folder).glob("*.yaml"))


def recipes_dir() -> Path:
    """Return the folder of the packaged recipes."""
    return _find_shipped("recipes")


@functools.cache
def _find_shipped(name: str) -> Path:
    """Find a folder that ships with Zoo: inside the package in a wheel, next to the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def find_cache_folder() -> Path:
    """Return the cache folder: `$ZOO_CACHE`, or the platform's folder for caches."""
    if stated := os.environ.get("ZOO_CACHE"):
        return Path(stated).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zoo" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


def is_first_time(note: str) -> bool:
    """Whether `note` has never been printed on this machine. An empty file in the cache folder records it. Without a
    writable cache the answer is always yes."""
    mark = find_cache_folder() / "notes" / f"{note}-{platform.node() or 'here'}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass
    return True
