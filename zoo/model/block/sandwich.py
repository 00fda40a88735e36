"""Norms before and after the sub-layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.model.block.base import Block, add_scaled, choose_scales
from zoo.model.block.residual import Residual, check_residual
from zoo.model.ffn import FFN
from zoo.model.norm import WholeNorm
from zoo.spec import CROSS, Buffer, Linear, Sized

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Sandwich(Block, kind="sandwich"):
    """x + norm(f(norm(x))) (Ding et al., 2021, CogView; Gemma 2). Cross-attention has norms on both sides too (T5Gemma,
    2025)."""

    takes_input: ClassVar[bool] = True
    takes_cross: ClassVar[bool] = True

    ffn: FFN
    """Feed-forward of the layer."""
    ffn_input_norm: bool = True
    """Whether the feed-forward reads norm(x). Otherwise it reads the stream as it is: a mixture with a `branch_norm`
    normalises it itself (Gemma 4, 2026)."""
    out_scale: bool = False
    """Whether the layer's output is multiplied by one number, saved with the weights and not trained (Gemma 4,
    2026)."""
    laurel_rank: PositiveInt | None = None
    """Rank R of a second path for attention's input n: n + norm(n·A·B), with A [D, R], is added to the stream, and the
    sum divided by √2 (Menghani et al., 2024, LAuReL; Gemma 3n, 2025)."""
    out_norm: WholeNorm | None = None
    """Norm after the sub-layers; `norm` unless given (Meta, 2026, Muse Glimmer)."""
    ffn_out_norm: WholeNorm | None = None
    """Norm after the feed-forward; `out_norm`, or else `norm`, unless given."""
    residual: Residual | None = None
    """Sum of stream and sub-layer by weights of its own (Meta, 2026, Muse Spark); null for a plain sum."""
    ffn_residual_scale: float | None = None
    """Constant factor of what the feed-forward gives; `residual_scale` unless given."""
    ffn_stream_scale: float | None = None
    """Constant factor of the stream where the feed-forward's output joins it; `stream_scale` unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_residual(self)

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "attention_norm": self.norm,
            "attention": self.attention,
            "attention_out_norm": self.out_norm or self.norm,
            **self._crossed(d_model),
            **({"ffn_norm": self.norm} if self.ffn_input_norm else {}),
            "ffn": self.ffn,
            "ffn_out_norm": self.ffn_out_norm or self.out_norm or self.norm,
            **({"attention_residual": self.residual, "ffn_residual": self.residual} if self.residual else {}),
            **self._laurel(d_model),
            **({"layer_input": self.layer_input} if self.layer_input else {}),
            **({"out_scale": Buffer((1,), init=1.0)} if self.out_scale else {}),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        x = self.run_sublayers(m, x, step)
        if self.layer_input is not None:
            x = self.add(x, m.layer_input(x, step.given))
        return x * m.out_scale.to(x.dtype) if self.out_scale else x

    def run_sublayers(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        """Attention and feed-forward, each with its norms: x [B, T, D] to [B, T, D]."""
        normed = m.attention_norm(x)
        y = m.attention_out_norm(m.attention(normed, step))
        x = self.add(x, y) if self.residual is None else m.attention_residual(x, y)
        if self.laurel_rank:
            x = (x + normed + m.laurel_norm(m.laurel_up(m.laurel_down(normed)))) * 2.0**-0.5
        if self.crosses:
            y = m.cross_out_norm(m.cross(m.cross_norm(x), step.cross))
            x = self.add(x, y) if self.residual is None else m.cross_residual(x, y)
        y = m.ffn_out_norm(m.ffn(m.ffn_norm(x) if self.ffn_input_norm else x, step))
        return add_scaled(x, y, *choose_scales(self)) if self.residual is None else m.ffn_residual(x, y)

    def _crossed(self, d_model: int) -> dict[str, Any]:
        if self.cross is None:
            return {}
        if not self.crosses:
            return {"cross": Sized(self.cross, d_model, role=CROSS)}
        return {
            "cross_norm": self.norm,
            "cross": Sized(self.cross, d_model, role=CROSS),
            "cross_out_norm": self.out_norm or self.norm,
            **({"cross_residual": self.residual} if self.residual else {}),
        }

    def _laurel(self, d_model: int) -> dict[str, Any]:
        if self.laurel_rank is None:
            return {}
        return {
            "laurel_down": Linear(d_model, self.laurel_rank),
            "laurel_up": Linear(self.laurel_rank, d_model, residual=True),
            "laurel_norm": self.norm,
        }
