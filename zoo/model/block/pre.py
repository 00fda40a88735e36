"""Norms before the sub-layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.model.block.base import Block, add_scaled, choose_scales
from zoo.model.block.out_conv import OutConv
from zoo.model.block.residual import Residual, check_residual
from zoo.model.ffn import FFN
from zoo.model.norm import WholeNorm
from zoo.spec import CROSS, Sized

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


PLACES = ("attention", "ffn")
"""The sub-layers whose outputs pass an `out_conv`."""


class Pre(Block, kind="pre"):
    """x + f(norm(x)) (Xiong et al., 2020; GPT-2, Llama)."""

    takes_cross: ClassVar[bool] = True

    ffn: FFN
    """Feed-forward of the layer."""
    input_norm: bool = True
    """Whether attention reads norm(x). Otherwise it reads the stream as it is (ModernBERT's first layer)."""
    residual_from_norm: bool = False
    """Whether the stream goes on from the norms' outputs, rather than their inputs (BLOOM's option)."""
    ffn_residual_scale: float | None = None
    """Constant factor of what the feed-forward gives; `residual_scale` unless given (MiniMax-01, 2025)."""
    ffn_stream_scale: float | None = None
    """Constant factor of the stream where the feed-forward's output joins it; `stream_scale` unless given (MiniMax-01,
    2025)."""
    ffn_norm: WholeNorm | None = None
    """Norm before the feed-forward; `norm` unless given (A.X K2, 2026)."""
    ffn_out_norm: bool = False
    """Whether what the feed-forward gives is normalised, too (A.X K1, 2026)."""
    residual: Residual | None = None
    """Sum of stream and sub-layer by weights of its own (ZAYA1, 2026); null for a plain sum."""
    out_conv: OutConv | None = None
    """Convolution that what attention and the feed-forward give passes before it is added (Inkling, 2026)."""
    stream_norm: bool = False
    """Whether the stream itself is normalised behind the layer (HRM-Text, 2026, after the last layer of each run)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_residual(self)

    @property
    def normalises_output(self) -> bool:  # type: ignore[override]
        return self.stream_norm

    @property
    def gathers(self) -> int:
        """Once more for each convolution, which each rank computes for all tokens."""
        return super().gathers + (2 if self.out_conv else 0)

    def state(self) -> dict[str, tuple[int, ...]]:
        own = self.out_conv.state().items() if self.out_conv else ()
        return super().state() | {f"{place}_{name}": shape for place in PLACES for name, shape in own}

    def parts(self, d_model: int) -> dict[str, Any]:
        cross = {"cross_norm": self.norm} if self.crosses else {}
        cross |= {"cross": Sized(self.cross, d_model, role=CROSS)} if self.cross else {}
        added = ("attention_residual", *(["cross_residual"] if self.crosses else []), "ffn_residual")
        return {
            **({"attention_norm": self.norm} if self.input_norm else {}),
            "attention": self.attention,
            **cross,
            "ffn_norm": self.ffn_norm or self.norm,
            "ffn": self.ffn,
            **({"ffn_out_norm": self.norm} if self.ffn_out_norm else {}),
            **(dict.fromkeys(added, self.residual) if self.residual else {}),
            **({f"{place}_conv": self.out_conv for place in PLACES} if self.out_conv else {}),
            **({"stream_norm": self.norm} if self.stream_norm else {}),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        normed = m.attention_norm(x) if self.input_norm else x
        stream, y = normed if self.residual_from_norm else x, m.attention(normed, step)
        y = m.attention_conv(y, step, "attention") if self.out_conv else y
        x = self.add(stream, y) if self.residual is None else m.attention_residual(stream, y)
        if self.crosses:
            y = m.cross(m.cross_norm(x), step.cross)
            x = self.add(x, y) if self.residual is None else m.cross_residual(x, y)
        normed = m.ffn_norm(x)
        y = m.ffn(normed, step)
        y = m.ffn_out_norm(y) if self.ffn_out_norm else y
        y = m.ffn_conv(y, step, "ffn") if self.out_conv else y
        stream = normed if self.residual_from_norm else x
        x = add_scaled(stream, y, *choose_scales(self)) if self.residual is None else m.ffn_residual(stream, y)
        return m.stream_norm(x) if self.stream_norm else x
