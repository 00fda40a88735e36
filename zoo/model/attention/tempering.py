# B batch, T queries, H heads, C head width
"""Queries that grow with position, so that attention stays sharp over many keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from zoo.lazy import torch
from zoo.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


class Tempering(Spec, axis="tempering", default="log"):
    """Scale queries by their position."""

    def factor(self, positions: Tensor) -> Tensor:
        """The factor [B, T, 1, 1] of queries [B, T, H, C] at positions [B, T]."""
        raise NotImplementedError


class LogTempering(Tempering, kind="log"):
    """q · (1 + scale·ln(1 + ⌊position / floor⌋)) (Nakanishi, 2025). Positions count from `first`: 1 in Llama 4, 0 in
    Ministral 3."""

    floor: PositiveInt = 8192
    scale: PositiveFloat = 0.1
    first: NonNegativeInt = 1

    def factor(self, positions: Tensor) -> Tensor:
        steps = ((positions.float() + self.first) / self.floor).floor()
        return (1 + self.scale * torch.log1p(steps))[..., None, None]


class LogRatioTempering(Tempering, kind="log_ratio"):
    """q · (1 + scale·ln(max(1, (position + first) / floor))), without steps: nothing grows up to the floor (Thinking
    Machines, 2026, Inkling)."""

    floor: PositiveInt = 8192
    scale: PositiveFloat = 0.1
    first: NonNegativeInt = 1

    def factor(self, positions: Tensor) -> Tensor:
        ratio = ((positions.float() + self.first) / self.floor).clamp(min=1.0)
        return (1 + self.scale * torch.log(ratio))[..., None, None]


class PowerTempering(Tempering, kind="power"):
    """q · (1 + (position + first) / floor)^power, for layers without positions (Reflection, 2026, Beam; after scalable
    softmax, Nakanishi, 2025)."""

    floor: PositiveInt = 2048
    power: PositiveFloat = 0.1
    first: NonNegativeInt = 1

    def factor(self, positions: Tensor) -> Tensor:
        return torch.exp(self.power * torch.log1p((positions.float() + self.first) / self.floor))[..., None, None]
