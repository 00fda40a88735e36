"""Average what steps measure, from one line of metrics to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.lazy import torch

LATEST = ("lr",)
"""What has the value of the last step instead."""


class Means:
    """The mean of each term of the loss, of the gradient's norm and of the experts' loads since the last line, over the
    steps in which it is a number.

    Sums are float64 and stay on the device, so that adding does not wait for it. Losses of 4.0, 3.0 and 2.0 at a
    `log_every` of 3 make a line with 3.0; with 1, each line has its step's own.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, Any]] = {}  # and how many steps each is of

    def add(self, terms: Mapping[str, Any]) -> None:
        """Add a step's terms: tensors of one element, or numbers."""
        for name, value in terms.items():
            value = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
            value = value.double()
            total, count = (0.0, 0) if name in LATEST else self._sums.get(name, (0.0, 0))
            finite = value.isfinite()
            self._sums[name] = total + value.where(finite, 0.0), count + finite

    def take(self) -> dict[str, float]:
        """Give the means, and begin anew. Waits for the device."""
        means = {name: total / count for name, (total, count) in self.state().items() if count}
        self._sums = {}
        return means

    def state(self) -> dict[str, tuple[float, int]]:
        """Give what a checkpoint between two lines keeps, so that a resumed run writes the same next line."""
        return {name: (float(total), int(count)) for name, (total, count) in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}
