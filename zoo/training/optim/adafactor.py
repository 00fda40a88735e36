"""Adafactor: second moments by rows and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from zoo.lazy import torch
from zoo.training.optim.base import Optim, Scale, unscaled

if TYPE_CHECKING:
    from torch.optim import Optimizer


LEAST = 1e-16
"""The least mean of squared gradients that is told from 0. torch has float32's epsilon, which is above those of a large
model; the square of it, which torch adds up with, must not be 0 in float32."""


class Adafactor(Optim, kind="adafactor"):
    """Second moments as the product of a row's and a column's means, and no first moment (Shazeer and Stern, 2018), as
    torch has it.

    Steps are relative: `lr`, or 1/√t where that is less, times the tensor's RMS, at least `min_rms`. An update is
    scaled down to an RMS of `clip_rms`. β₂ at step t is 1 − t^`beta2_decay`. Weight decay is decoupled.
    """

    by_element: ClassVar[bool] = False
    by_part: ClassVar[bool] = False

    lr: PositiveFloat = 1e-2
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    min_rms: PositiveFloat = 1e-3
    clip_rms: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 0.0

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        eps = (LEAST, self.min_rms)
        groups = self.make_groups(model, scale)
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.beta2_decay, eps=eps, d=self.clip_rms)
