# B batch, T tokens, C channels
"""The gated short convolution: a mixer that reads a few tokens back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor
from zoo.model.attention.base import Attention, Passes
from zoo.model.attention.recurrent import check_causal, convolve
from zoo.spec import Conv, Linear, split

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class ShortConv(Attention, kind="short_conv"):
    """Gated short convolution (Liquid AI, 2025, LFM2).

    One projection of x gives B, C and u. With a depthwise causal convolution,

        y = C ⊙ conv(B ⊙ u),   out = y·W_out.

    The state is the last d_conv − 1 values of B ⊙ u.
    """

    passes: ClassVar[Passes] = Passes()  # type: ignore[misc]
    causal: ClassVar[bool | None] = True

    d_inner: PositiveInt
    """Channels of B, C and u."""
    d_conv: PositiveInt = 3
    """Width of the convolution, in tokens."""
    bias: bool = False
    """Whether both projections and the convolution have a bias."""

    def parts(self, d_model: int) -> dict[str, Any]:
        inner = self.d_inner
        return {
            "in_proj": Linear(d_model, 3 * inner, self.bias, segments=(inner, inner, inner)),  # B, C and u
            "conv": Conv(inner, inner, self.d_conv, groups=inner, bias=self.bias),
            "out_proj": Linear(inner, d_model, self.bias, residual=True),
        }

    def shard(self, ranks: int) -> ShortConv:
        return split(self, ranks, equal=("d_inner",))

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.d_conv - 1, self.d_inner)}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        check_causal(step)
        B, C, u = m.in_proj(x).chunk(3, -1)  # B T C each
        return m.out_proj(C * convolve(m.conv, B * u, step))  # B T D
