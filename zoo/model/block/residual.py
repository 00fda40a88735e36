# B batch, T tokens, D model width
"""Residual sums with learned weights of the stream and of a sub-layer's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat

from zoo.lazy import Tensor, torch
from zoo.spec import Spec, Weight, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Weights


FLOOR = 1e-3
"""Lower bound of 1 − β², so that its root has a finite gradient."""


class Residual(Spec, axis="residual", default="gated"):
    """Add a sub-layer's output to the residual stream with learned weights."""

    def forward(self, m: Weights, x: Tensor, y: Tensor) -> Tensor:
        """Add a sub-layer's output y [B, T, D] to the stream x [B, T, D]."""
        raise NotImplementedError

    shard = hold_whole  # every rank adds whole vectors


class GatedResidual(Residual, kind="gated"):
    """Gated residual sum √(1 − β²)·x + β·y with β = σ(gate / temperature), a gate for each channel, so that the sum is
    about as large as x (Meta, 2026, Muse Spark)."""

    temperature: PositiveFloat = 1.0
    """Divisor of the gates' logits."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"gate": Weight((d_model,))}

    def forward(self, m: Weights, x: Tensor, y: Tensor) -> Tensor:
        share = torch.sigmoid(m.gate.float() / self.temperature)
        kept = (1 - share.square()).clamp(min=FLOOR).sqrt()
        return (kept * x + share * y).to(x.dtype)


class AffineResidual(Residual, kind="affine"):
    """Residual sum (x + shift)·scale + (y + out_shift)·out_scale, learned for each channel (Zyphra, 2026, ZAYA1)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        each = (d_model,)
        scales = {name: Weight(each, init=1.0) for name in ("scale", "out_scale")}
        return scales | {name: Weight(each) for name in ("shift", "out_shift")}

    def forward(self, m: Weights, x: Tensor, y: Tensor) -> Tensor:
        kept = (x.float() + m.shift.float()) * m.scale.float()
        return (kept + (y.float() + m.out_shift.float()) * m.out_scale.float()).to(x.dtype)
