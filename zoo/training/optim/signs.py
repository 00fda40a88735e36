"""Optimizers that keep one value of each weight: Lion and SGD with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveFloat

from zoo.lazy import torch
from zoo.training.optim.base import Beta, Optim, Scale, unscaled

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Lion(Optim, kind="lion"):
    """The sign of an interpolation of momentum and gradient, with decoupled weight decay (Chen et al., 2023).

    Its steps are larger than AdamW's at the same rate: the paper takes 3 to 10 times less `lr` and as much more
    `weight_decay`.
    """

    lr: PositiveFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 1.0

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        from zoo.training.optim.rules import Lion as Rule

        return Rule(self.make_groups(model, scale), lr=self.lr, betas=self.betas)


class SGD(Optim, kind="sgd"):
    """Gradient descent with momentum (Polyak, 1964), or Nesterov's (1983). Weight decay is torch's: a part of the
    gradient, not decoupled."""

    lr: PositiveFloat = 0.1
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            found = "nesterov looks ahead along the momentum, which is 0"
            raise ValueError(f"{found} (momentum above 0, or nesterov: false)")

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        groups = self.make_groups(model, scale)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
