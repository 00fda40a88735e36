"""Compute activations a second time in the backward pass instead of keeping them, as `zoo stats --recompute` prices it.

| recompute | kept of a layer | computed again |
| --- | --- | --- |
| none | what its backward pass reads | |
| selective | all but attention's inside: scores, their softmax | attention from q, k and v (Korthikanti et al., 2022) |
| full | its input | its whole forward pass (Chen et al., 2016) |
| every_n | as with full for every n-th layer, as with none for the others | |

Gradients stay the same bit for bit on a CPU: the second computation is the first one over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.costs.again import read_every, runs_again
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Recompute:
    """Runs the layers of a tower in a pass without a cache."""

    def __init__(self, what: str) -> None:
        self.selective = what == "selective"
        self.every = 1 if what == "full" else read_every(what)

    def run(self, index: int, layer: Any, x: Tensor, step: Any) -> Tensor:
        """Run a layer: x [B, T, D] → [B, T, D]. Nothing is recomputed where no gradient is wanted."""
        if self.every and runs_again(index, self.every) and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            return checkpoint(layer, x, step, use_reentrant=False)  # type: ignore[return-value]
        step.again = self.selective
        if step.cross is not None:
            step.cross.again = step.again
        return layer(x, step)


def set_recompute(model: Any, what: str) -> None:
    """Let every tower of a built model recompute: "none", "selective", "full" or "every_n"."""
    for path, _ in model.towers():
        tower = model.get_submodule(path) if path else model
        tower.recompute = None if what == "none" else Recompute(what)
