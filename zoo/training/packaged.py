"""Read fields of a training config that may be the name of a packaged choice (`parallel=fsdp`), or `auto`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.errors import name_options
from zoo.paths import list_conf, read_conf


def read_packaged(axis: str, value: object) -> Any:
    """Replace the name of an axis's packaged choice by its fields; return any other value unchanged. Raises ValueError
    for an unknown name."""
    if not isinstance(value, str):
        return value
    if value not in (names := list_conf(axis)):
        raise ValueError(f"there is no {value!r}{name_options(value, names)}")
    return read_conf(f"{axis}/{value}")


def make_count_check(least: int) -> Callable[[Any], Any]:
    """Make a validator of a whole number of at least `least`, or `auto`."""

    def check(value: object) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"must be a whole number from {least} up, or auto, found {value!r}")
        return value

    return check
