"""Read fields of a training config that may be the name of a packaged choice (`parallel=fsdp`), or `auto`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.errors import name_options
from zoo.paths import conf_dir


def read_packaged(axis: str, value: object) -> Any:
    """Replace the name of an axis's packaged choice by its fields; return any other value unchanged. Raises ValueError
    for an unknown name."""
    if not isinstance(value, str):
        return value
    from yaml import safe_load

    names = sorted(file.stem for file in (conf_dir() / axis).glob("*.yaml"))
    if value not in names:
        raise ValueError(f"there is no {value!r}{name_options(value, names)}")
    return safe_load((conf_dir() / axis / f"{value}.yaml").read_text(encoding="utf-8"))


def make_count_check(least: int) -> Callable[[Any], Any]:
    """Make a validator of a whole number of at least `least`, or `auto`."""

    def check(value: object) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"must be a whole number from {least} up, or auto, found {value!r}")
        return value

    return check
