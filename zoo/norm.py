# D model width
"""Normalisation of the residual stream. Always computed in float32, given back in the input's dtype."""

from __future__ import annotations

from typing import Any

from zoo.lazy import F, torch
from zoo.spec import Spec, Weight


class Norm(Spec, axis="norm"):
    """Scales each vector to a common size."""


class RMSNorm(Norm, kind="rmsnorm"):
    """x / √(mean(x²) + eps) · weight (Zhang and Sennrich, 2019). With `unit_offset` the scale is 1 + weight (Gemma)."""

    eps: float = 1e-6
    weight: bool = True
    bias: bool = False
    unit_offset: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def parts(self, d_model: int) -> dict[str, Any]:
        return _scale_and_shift(self, d_model)

    def forward(self, m: Any, x: Any) -> Any:  # type: ignore[override]
        y = F.rms_norm(x.float(), x.shape[-1:], _scale(self, m), self.eps)
        if self.bias:
            y = y + m.bias.float()
        return y.to(x.dtype)


class LayerNorm(Norm, kind="layernorm"):
    """(x − mean) / √(var + eps) · weight + bias (Ba, Kiros and Hinton, 2016)."""

    eps: float = 1e-5
    weight: bool = True
    bias: bool = True
    unit_offset: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def parts(self, d_model: int) -> dict[str, Any]:
        return _scale_and_shift(self, d_model)

    def forward(self, m: Any, x: Any) -> Any:  # type: ignore[override]
        shift = m.bias.float() if self.bias else None
        return F.layer_norm(x.float(), x.shape[-1:], _scale(self, m), shift, self.eps).to(x.dtype)


def _check(norm: RMSNorm | LayerNorm) -> None:
    if norm.eps <= 0:
        raise ValueError(f"eps must be above 0, found {norm.eps}")
    if norm.unit_offset and not norm.weight:
        raise ValueError("unit_offset adds 1 to a weight, and weight is false (set one or the other)")


def _scale_and_shift(norm: RMSNorm | LayerNorm, d_model: int) -> dict[str, Any]:
    weight = {"weight": Weight((d_model,), init=0.0 if norm.unit_offset else 1.0)} if norm.weight else {}
    return weight | ({"bias": Weight((d_model,))} if norm.bias else {})


def _scale(norm: RMSNorm | LayerNorm, m: Any) -> torch.Tensor | None:
    if not norm.weight:
        return None
    return m.weight.float() + 1 if norm.unit_offset else m.weight.float()
