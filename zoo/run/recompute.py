"""Recompute activations in the backward pass instead of storing them, as `zoo stats --recompute` prices it.

| recompute | stored per layer | recomputed |
| --- | --- | --- |
| none | all that its backward pass reads | |
| selective | all but scores and softmax inside attention | attention from q, k and v (Korthikanti et al., 2022) |
| full | its input | its whole forward pass (Chen et al., 2016) |
| every_n | as with full for every n-th layer, as with none for the others | |

Gradients are bit-identical on a CPU, because the second computation gives the same bits as the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.costs.again import read_every, runs_again
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.model.step import Step
    from zoo.run.layer import Layer, Model


class Recompute:
    """Run the layers of a tower with recomputation, in passes without a cache."""

    def __init__(self, what: str) -> None:
        self.selective = what == "selective"
        self.every = 1 if what == "full" else read_every(what)

    def run(self, index: int, layer: Layer, x: Tensor, step: Step) -> Tensor:
        """Run layer number `index`: x [B, T, D] → [B, T, D]. Nothing is recomputed without gradients."""
        if self.every and runs_again(index, self.every) and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            return checkpoint(layer, x, step, use_reentrant=False)  # type: ignore[return-value]
        step.again = self.selective
        if step.cross is not None:
            step.cross.again = step.again
        return layer(x, step)


def set_recompute(model: Model, what: str) -> None:
    """Set the recomputation of every tower of a built model: "none", "selective", "full" or "every_n" (n a number)."""
    for path, _ in model.towers():
        tower: Any = model.get_submodule(path) if path else model
        tower.recompute = None if what == "none" else Recompute(what)
