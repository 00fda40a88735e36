"""The result of a run trained from Python: outcome, history, model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray as Array

    from zoo.run.layer import Model


class TrainingResult(Mapping[str, Any]):
    """The outcome of a run, a mapping with the keys of its result.json: `result["val_loss"]`."""

    def __init__(self, outcome: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], model: Model) -> None:
        self._outcome = dict(outcome)
        self._lines = list(lines)
        self.model = model
        """The trained model, in eval mode, on the device that trained it."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self._outcome["run"])

    @cached_property
    def history(self) -> dict[str, Array]:
        """Metrics by name, as arrays [n] with a value for each step that has a line, NaN if not measured. `step` and
        `tokens` are integers. `pandas.DataFrame(result.history)` makes a table."""
        return make_history(self._lines)

    def __getitem__(self, key: str) -> Any:
        return self._outcome[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcome)

    def __len__(self) -> int:
        return len(self._outcome)

    def __repr__(self) -> str:
        return f"TrainingResult({self._outcome!r})"


def make_history(lines: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Make arrays from lines of metrics. The lines of one step (update, evaluation) are merged."""
    import numpy as np

    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        steps.setdefault(line["step"], {}).update(line)
    names = dict.fromkeys(name for row in steps.values() for name in row)
    history = {}
    for name in names:
        values = [row.get(name) for row in steps.values()]
        whole = name in ("step", "tokens")
        history[name] = np.array([np.nan if value is None else value for value in values], np.int64 if whole else float)
    return history
