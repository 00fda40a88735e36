# B batch, T tokens, W width of the convolution, D model width
"""A post-norm block with a convolution in parallel (DeBERTa v2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import Tensor
from zoo.model.activation import PlainActivation
from zoo.model.block.sublayers import Post
from zoo.model.packed_conv import convolve_both_ways
from zoo.spec import Conv

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class PostConv(Post, kind="post_conv"):
    """Post-norm block with a convolution, norm(post(x) + act(conv(x))), where post is the block of that name (He et
    al., 2020; DeBERTa v2's first layer).

    The convolution is centred on each token, so the block is for bidirectional models. It reads neither padding nor
    other packed documents.
    """

    causal: ClassVar[bool | None] = False
    divided: ClassVar[tuple[str, ...]] = ("attention", "ffn")

    conv_width: PositiveInt
    """Width of the convolution, in tokens, an odd number."""
    conv_activation: PlainActivation
    """Activation of the convolution's output."""
    conv_groups: PositiveInt = 1
    """Number of groups of channels that are convolved separately, a divisor of d_model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conv_width % 2 == 0:
            raise ValueError(f"conv_width={self.conv_width} has no middle token (an odd one would do)")

    @property
    def normalises_output(self) -> bool:  # type: ignore[override]
        return True

    @property
    def gathers(self) -> int:
        """Number of gathers of all ranks' tokens: one more than in `post`, for the convolution, which each rank
        computes for all tokens."""
        return super().gathers + 1

    def parts(self, d_model: int) -> dict[str, Any]:
        if d_model % self.conv_groups:
            raise ConfigError(f"conv_groups: {self.conv_groups} do not divide d_model={d_model} (choose a divisor)")
        return {
            **super().parts(d_model),
            "conv": Conv(d_model, d_model, self.conv_width, self.conv_groups, bias=True),
            "conv_norm": self.norm,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        y = super().forward(m, x, step)
        whole = m.seam.gather(x, step.mask.n_queries)
        convolved = m.seam.own(convolve_both_ways(m.conv, whole, step, self.conv_width))
        return m.conv_norm(y + self.conv_activation.apply(convolved))
