"""One YAML grammar for transformer architectures: priced before anything is built, then built, trained and run.

`zoo.stats(config, overrides)`, `zoo.build(config, overrides)`, `zoo.train(config, overrides)`, `zoo.load(path)` and
`zoo.generate(model, ids)`. Importing this imports neither torch nor hydra; a name is looked up when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zoo.api import stats as stats
    from zoo.api import train as train
    from zoo.build import build as build
    from zoo.checkpoint.store import load as load
    from zoo.errors import CheckpointError as CheckpointError
    from zoo.errors import ConfigError as ConfigError
    from zoo.errors import FitError as FitError
    from zoo.errors import KernelError as KernelError
    from zoo.errors import ZooError as ZooError
    from zoo.generation.engine import generate as generate

_HOMES = {
    "stats": "zoo.api",
    "train": "zoo.api",
    "build": "zoo.build",
    "load": "zoo.checkpoint.store",
    "generate": "zoo.generation.engine",
    **dict.fromkeys(("ZooError", "ConfigError", "KernelError", "CheckpointError", "FitError"), "zoo.errors"),
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "FitError",
    "KernelError",
    "ZooError",
    "__version__",
    "build",
    "generate",
    "load",
    "stats",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """Keeps `zoo.build` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
