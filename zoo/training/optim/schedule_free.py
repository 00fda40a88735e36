"""AdamW without a schedule: an average of the weights takes the place of the rate's decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from zoo.training.optim.base import Beta, Optim, Scale, unscaled

if TYPE_CHECKING:
    from torch.optim import Optimizer


class ScheduleFree(Optim, kind="schedule_free"):
    """Schedule-free AdamW (Defazio et al., 2024): gradients are taken at y = (1 − β₁)·z + β₁·x, z is stepped, and the
    average x of all z, weighted by the squared rate, is evaluated and saved.

    `schedule` can only be constant, with a warm-up: the average replaces a decay.
    """

    averages: ClassVar[bool] = True

    lr: PositiveFloat = 2.5e-3
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1

    def build(self, model: Any, scale: Scale = unscaled) -> Optimizer:
        from zoo.training.optim.rules import ScheduleFreeAdamW

        return ScheduleFreeAdamW(self.make_groups(model, scale), lr=self.lr, betas=self.betas, eps=self.eps)
