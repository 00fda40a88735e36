"""One YAML grammar for transformer architectures: priced before anything is built, then built, trained and run.

`zoo.stats(config, overrides)`, `zoo.diff(a, b)`, `zoo.build(config, overrides)`, `zoo.train(config, overrides)`,
`zoo.load(path)`, `zoo.generate(model, ids)`, `zoo.fill(model, texts)`, `zoo.score(model, texts)`,
`zoo.embed(model, texts)`, `zoo.evaluate(model, texts)`, `zoo.export(model, path)` and `zoo.experiment(file)`. Importing
the package imports neither torch nor hydra: each name is imported from its module at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zoo.api import diff as diff
    from zoo.api import evaluate as evaluate
    from zoo.api import export as export
    from zoo.api import stats as stats
    from zoo.api import train as train
    from zoo.checkpoint.store import load as load
    from zoo.errors import CheckpointError as CheckpointError
    from zoo.errors import ConfigError as ConfigError
    from zoo.errors import FitError as FitError
    from zoo.errors import KernelError as KernelError
    from zoo.errors import ZooError as ZooError
    from zoo.experiments.looking import experiment as experiment
    from zoo.generation.engine import Engine as Engine
    from zoo.generation.generate import generate as generate
    from zoo.generation.request import Request as Request
    from zoo.run.builder import build as build
    from zoo.run.linear.ready import prepare as prepare
    from zoo.sampling.options import Sampling as Sampling
    from zoo.text.fill import fill as fill
    from zoo.text.labels import score as score
    from zoo.text.vectors import embed as embed
    from zoo.training.callbacks import Callback as Callback
    from zoo.training.callbacks import TrainingState as TrainingState
    from zoo.training.result import TrainingResult as TrainingResult

_HOMES = {
    name: home
    for home, names in {
        "zoo.api": "diff evaluate export stats train",
        "zoo.checkpoint.store": "load",
        "zoo.errors": "CheckpointError ConfigError FitError KernelError ZooError",
        "zoo.experiments.looking": "experiment",
        "zoo.generation.engine": "Engine",
        "zoo.generation.generate": "generate",
        "zoo.generation.request": "Request",
        "zoo.run.builder": "build",
        "zoo.run.linear.ready": "prepare",
        "zoo.sampling.options": "Sampling",
        "zoo.text.fill": "fill",
        "zoo.text.labels": "score",
        "zoo.text.vectors": "embed",
        "zoo.training.callbacks": "Callback TrainingState",
        "zoo.training.result": "TrainingResult",
    }.items()
    for name in names.split()
}

__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
