# B batch, T queries, H heads, C head width
"""Scale queries by a factor that grows with position, so that attention stays sharp over many keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.spec import Spec, Weight

if TYPE_CHECKING:
    from zoo.model.step import Weights


class Tempering(Spec, axis="tempering", default="log"):
    """Scale queries by a factor that depends on their position."""

    by_head: ClassVar[bool] = False  # whether each head has a factor of its own

    def list_parts(self, n_heads: int, prefix: str = "") -> dict[str, Any]:
        """List the weights for an attention (or an indexer) of `n_heads` heads, under names that begin with
        `prefix`."""
        return {}

    def factor(self, m: Weights, positions: Tensor, prefix: str = "") -> Tensor:
        """Compute the factor [B, T, 1|H, 1] of queries [B, T, H, C] at positions [B, T]. `m` are the weights of the
        attention."""
        raise NotImplementedError

    def temper(self, m: Weights, q: Tensor, positions: Tensor, prefix: str = "") -> Tensor:
        """Scale queries q [B, T, H, C] at positions [B, T]."""
        return (q * self.factor(m, positions, prefix)).to(q.dtype)


class LogTempering(Tempering, kind="log"):
    """Multiply q by 1 + scale·ln(1 + ⌊(position + first) / floor⌋) (Nakanishi, 2025)."""

    floor: PositiveInt = 8192
    """Number of tokens after which the factor takes its next step."""
    scale: PositiveFloat = 0.1
    """Factor of the logarithm."""
    first: NonNegativeInt = 1
    """Position that a row's first token counts as: 1 in Llama 4, 0 in Ministral 3."""

    def factor(self, m: Weights, positions: Tensor, prefix: str = "") -> Tensor:
        steps = ((positions.float() + self.first) / self.floor).floor()
        return (1 + self.scale * torch.log1p(steps))[..., None, None]


class LogRatioTempering(Tempering, kind="log_ratio"):
    """Multiply q by 1 + scale·ln(max(1, (position + first) / floor)), without steps (Thinking Machines, 2026,
    Inkling)."""

    floor: PositiveInt = 8192
    """Position up to which the factor is 1, in tokens."""
    scale: PositiveFloat = 0.1
    """Factor of the logarithm."""
    first: NonNegativeInt = 1
    """Position that a row's first token counts as."""

    def factor(self, m: Weights, positions: Tensor, prefix: str = "") -> Tensor:
        ratio = ((positions.float() + self.first) / self.floor).clamp(min=1.0)
        return (1 + self.scale * torch.log(ratio))[..., None, None]


class PowerTempering(Tempering, kind="power"):
    """Multiply q by (1 + (position + first) / floor)^power, for layers without positions (Reflection, 2026, Beam; after
    scalable softmax, Nakanishi, 2025)."""

    floor: PositiveInt = 2048
    """Divisor of the positions, in tokens."""
    power: PositiveFloat = 0.1
    """Exponent of the growth."""
    first: NonNegativeInt = 1
    """Position that a row's first token counts as."""

    def factor(self, m: Weights, positions: Tensor, prefix: str = "") -> Tensor:
        return torch.exp(self.power * torch.log1p((positions.float() + self.first) / self.floor))[..., None, None]


class ScalableSoftmax(Tempering, kind="scalable_softmax"):
    """Multiply q by s·ln(n) + b for the n-th token, with s and b learned for each head (Nakanishi, 2025; Mistral Large
    4, 2026). The initial values, s = 0 and b = 1, give plain attention."""

    by_head: ClassVar[bool] = True

    def list_parts(self, n_heads: int, prefix: str = "") -> dict[str, Any]:
        return {f"{prefix}growth": Weight((n_heads,)), f"{prefix}growth_bias": Weight((n_heads,), init=1.0)}

    def factor(self, m: Weights, positions: Tensor, prefix: str = "") -> Tensor:
        growth, bias = (getattr(m, f"{prefix}{name}").float() for name in ("growth", "growth_bias"))
        return (torch.log1p(positions.float())[..., None] * growth + bias)[..., None]
