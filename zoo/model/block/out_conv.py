# B batch, T tokens, D model width, W width of the convolution
"""A short convolution of a sub-layer's output, before it joins the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import Tensor
from zoo.model.attention.recurrent import check_causal, check_width, convolve
from zoo.model.ffn import multiply
from zoo.spec import Conv, Spec, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class OutConv(Spec, axis="out_conv", default="residual"):
    """Mix a sub-layer's outputs along the tokens."""

    def state(self) -> dict[str, tuple[int, ...]]:
        """List the states of one convolution: name to shape. The block prefixes the sub-layer's name."""
        raise NotImplementedError

    def forward(self, m: Weights, y: Tensor, step: Step, place: str) -> Tensor:
        """Convolve a sub-layer's output y [B, T, D] before it joins the stream. `place` prefixes state names."""
        raise NotImplementedError


class ResidualConv(OutConv, kind="residual"):
    """Convolution with a residual sum, scale · (y + conv(y)), depthwise and causal (Allen-Zhu, 2025, Canon layers;
    Thinking Machines, 2026, Inkling)."""

    causal: ClassVar[bool | None] = True

    d_model: PositiveInt
    """Width of the residual stream, stated because the state's size follows from it."""
    width: PositiveInt = 4
    """Width of the convolution, in tokens."""
    scale: PositiveFloat = 1.0
    """Constant factor of the sum."""

    def parts(self, d_model: int) -> dict[str, Any]:
        check_width(self.d_model, d_model)
        return {"conv": Conv(d_model, d_model, self.width, groups=d_model)}

    shard = hold_whole  # every rank convolves whole vectors

    def state(self) -> dict[str, tuple[int, ...]]:
        return {"conv": (self.width - 1, self.d_model)}

    def forward(self, m: Weights, y: Tensor, step: Step, place: str) -> Tensor:
        check_causal(step, "block.out_conv")
        whole = m.seam.gather(y, step.mask.n_queries)
        mixed = y + m.seam.own(convolve(m.conv, whole, step, f"{place}_conv"))
        return multiply(mixed, self.scale)
