"""Average what steps measure, from one line of metrics to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.lazy import torch

LATEST = ("lr",)
"""What has the value of the last step instead."""


class Means:
    """The mean of each term of the loss, of the gradient's norm and of the experts' loads since the last line.

    Sums are float64 and stay on the device, so that adding does not wait for it. Losses of 4.0, 3.0 and 2.0 at a
    `log_every` of 3 make a line with 3.0; with 1, each line has its step's own.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._sums: dict[str, Any] = {}

    def add(self, terms: Mapping[str, Any]) -> None:
        """Add a step's terms: tensors of one element, or numbers."""
        self._steps += 1
        for name, value in terms.items():
            value = value.detach().double() if isinstance(value, torch.Tensor) else value
            self._sums[name] = value if name in LATEST or name not in self._sums else self._sums[name] + value

    def take(self) -> dict[str, float]:
        """Give the means, and begin anew. Waits for the device."""
        means = {name: float(total) / (1 if name in LATEST else self._steps) for name, total in self._sums.items()}
        self._steps, self._sums = 0, {}
        return means

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint between two lines keeps, so that a resumed run writes the same next line."""
        return {"steps": self._steps, "sums": {name: float(total) for name, total in self._sums.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self._steps, self._sums = state["steps"], dict(state["sums"])
