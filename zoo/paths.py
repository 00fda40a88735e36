"""Where the files that ship with Zoo lie."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The configuration tree: `zoo/conf` of an installed wheel, else the `conf` beside the package of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
