"""Precisions of a run, by name: dtypes of computation and of storage. `zoo stats --precision` prices the same.

| precision | weights that compute | gradients | trained weights |
| --- | --- | --- | --- |
| fp32 | float32 | float32 | the same |
| bf16, fp8_… | float32, cast by autocast or to float8 | float32 | the same |
| bf16_master | bfloat16 copies, no autocast | float32, summed up over microbatches | float32 masters |
| bf16_pure | bfloat16, no autocast | bfloat16 | the same; updates round stochastically |

In all but the last the trained weights, the optimizer's states and checkpoints are float32, so that averages, resuming
and evaluation do not depend on the precision. In bf16_pure all of these are bfloat16, and only a moving average of the
weights is float32.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.run.layer import Model

MASTER, PURE = "bf16_master", "bf16_pure"


def find_priced(precision: str) -> str:
    """Return the name by which a run's precision is priced."""
    if precision.startswith("fp8"):
        return "bf16"
    return "fp32" if precision == "auto" else precision


class ComputingCopies:
    """A bfloat16 copy of a model that computes gradients for its float32 masters (Micikevicius et al., 2017).

    As soon as a parameter's gradient is complete, it is added in float32 to the master's gradient, then freed. So
    gradients of microbatches are summed in float32 (Megatron-LM). Buffers, such as a router's selection biases, are
    shared with the masters.
    """

    def __init__(self, masters: Model) -> None:
        pairs = []
        self.model = copy.deepcopy(masters)
        for mine, theirs in zip(self.model.modules(), masters.modules(), strict=True):
            for name, parameter in mine._parameters.items():
                if parameter is not None:
                    low = torch.nn.Parameter(parameter.detach().bfloat16(), requires_grad=parameter.requires_grad)
                    mine._parameters[name] = low
                    pairs.append((low, theirs._parameters[name]))
            mine._buffers.update(theirs._buffers)
        self.low, self.high = [low for low, _ in pairs], [high for _, high in pairs]
        for low, high in pairs:
            if low.requires_grad:
                low.register_post_accumulate_grad_hook(lambda low, high=high: hand_over(low, high))

    def refresh(self) -> Model:
        """Round the masters into the bfloat16 copy, and return the copy. Each step begins with this, so that anything
        may change the masters between steps."""
        with torch.no_grad():
            for low, high in zip(self.low, self.high, strict=True):
                low.copy_(high)
        return self.model


def lower_weights(model: Model) -> None:
    """Round a model's parameters to bfloat16 in place. Buffers, such as a router's selection biases, stay float32."""
    for each in model.parameters():
        each.data = each.data.bfloat16()


def hand_over(low: Tensor, high: Tensor) -> None:
    """Add the gradient of a copy `low` to the gradient of its master `high`, and free the copy's gradient."""
    assert low.grad is not None
    if high.grad is None:
        high.grad = low.grad.to(high.dtype)
    else:
        high.grad.add_(low.grad)
    low.grad = None
