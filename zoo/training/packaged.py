"""Read a field whose value may be the name of a packaged choice (`parallel=fsdp`)."""

from __future__ import annotations

from typing import Any

from zoo.errors import did_you_mean
from zoo.paths import conf_dir


def read_packaged(axis: str, value: Any) -> Any:
    """Read the fields of a packaged choice of an axis by its name; give back any other value."""
    if not isinstance(value, str):
        return value
    from yaml import safe_load

    names = sorted(file.stem for file in (conf_dir() / axis).glob("*.yaml"))
    if value not in names:
        raise ValueError(f"there is no {value!r}{did_you_mean(value, names)} (one of: {', '.join(names)})")
    return safe_load((conf_dir() / axis / f"{value}.yaml").read_text(encoding="utf-8"))
