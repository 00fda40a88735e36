"""Build optimizers, by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat

from zoo.lazy import torch
from zoo.spec import Spec

if TYPE_CHECKING:
    from torch.optim import Optimizer

Beta = Annotated[float, Field(ge=0, lt=1)]

FUSED = ("cpu", "cuda", "xpu", "mps")
"""Devices with a fused AdamW in torch. On a CPU it takes a quarter of the time of the unfused one."""


class Optim(Spec, axis="optim"):
    """An optimizer's hyperparameters. `lr` is the peak of the schedule."""

    lr: PositiveFloat

    def build(self, model: Any) -> Optimizer:
        """Make torch's optimizer over the model's parameters."""
        raise NotImplementedError


class AdamW(Optim, kind="adamw"):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017). Norm scales and biases are not decayed."""

    lr: PositiveFloat = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def build(self, model: Any) -> Optimizer:
        groups = model.decay_groups(self.weight_decay)
        fused = all(parameter.device.type in FUSED for parameter in model.parameters())
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused)
