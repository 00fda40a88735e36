# B batch, T tokens, H heads, C head width, W width of the convolution, D model width
"""Heads of softmax attention next to heads of a convolution whose weights depend on a span of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import F, Tensor, torch
from zoo.model.attention.base import PlainHeads
from zoo.model.packed_conv import convolve_both_ways
from zoo.spec import Conv, Linear

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class SpanConv(PlainHeads, kind="span_conv"):
    """Mixed attention (Jiang et al., 2020, ConvBERT), for bidirectional models: heads of softmax attention, and as many
    heads of span-based dynamic convolution.

    A convolution head sums the values of the `conv_width` tokens around each token i. The weights of the sum are
    softmax((q_i ⊙ s_i)·W), where s is a projection of a depthwise convolution (of the same width) of the layer's input.
    Neither convolution reads padding or another packed document.
    """

    causal: ClassVar[bool | None] = False
    joins: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v", "conv_v"),)

    n_heads: PositiveInt
    """Number of heads of each of the two kinds."""
    conv_width: PositiveInt = 9
    """Width of both convolutions, in tokens, an odd number."""
    bias: bool = True
    """Whether the projections have a bias."""

    def __post_init__(self) -> None:
        if self.conv_width % 2 == 0:
            raise ValueError(f"conv_width={self.conv_width} has no middle token (an odd one would do)")

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.n_heads * self.head_dim
        return {
            **{name: Linear(d_model, width, self.bias) for name in ("q", "k", "v", "conv_v")},
            "span": Conv(d_model, d_model, self.conv_width, groups=d_model),
            "span_k": Linear(d_model, width, self.bias),
            "conv_weights": Linear(width, self.n_heads * self.conv_width, self.bias),
            "o": Linear(2 * width, d_model, self.bias, residual=True),
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        heads = (self.n_heads, self.head_dim)
        q, k, v, values = (part(x).unflatten(-1, heads) for part in (m.q, m.k, m.v, m.conv_v))  # B T H C
        attended = step.attend_under(step.mask, q, k, v, self.head_dim**-0.5)
        spans = m.span_k(convolve_both_ways(m.span, x, step, self.conv_width))  # B T HC
        weights = m.conv_weights(spans * q.flatten(-2)).unflatten(-1, (self.n_heads, self.conv_width))  # B T H W
        convolved = self._weigh(values, weights.float().softmax(-1).to(values.dtype), step)
        return m.o(torch.cat((attended, convolved), -2).flatten(-2))  # B T D

    def _weigh(self, values: Tensor, weights: Tensor, step: Step) -> Tensor:
        """Sum the values [B, T, H, C] around each token, weighted by the token's weights [B, T, H, W]."""
        side, tokens = self.conv_width // 2, values.shape[1]
        if step.real is not None:
            values = values.masked_fill(~step.real[..., None, None], 0)
        near = F.pad(values, (0, 0, 0, 0, side, side))
        documents = None if step.documents is None else F.pad(step.documents, (side, side), value=-1)
        found = None
        for place in range(self.conv_width):
            each = near[:, place : place + tokens]
            if documents is not None:
                strange = documents[:, place : place + tokens] != step.documents
                each = each.masked_fill(strange[..., None, None], 0)
            part = each * weights[..., place : place + 1]
            found = part if found is None else found + part
        assert found is not None
        return found
