"""A feed-forward alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.model.attention.base import Attention
from zoo.model.attention.nothing import NoAttention
from zoo.model.block.base import Block
from zoo.model.ffn import FFN

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class FeedForward(Block, kind="feed_forward"):
    """x + ffn(norm(x)), without attention: a layer that is only a feed-forward or a mixture of experts, among others
    that are only a mixer (NVIDIA, 2025, Nemotron-H)."""

    attention: Attention = NoAttention()
    """Attention 'none', for all that ask a layer about its own."""
    ffn: FFN
    """Feed-forward of the layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attention, NoAttention):
            raise ValueError(f"a '{self.kind}' block has no place for attention '{self.attention.kind}' (pre has)")

    @property
    def reductions(self) -> int:
        return 1

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"ffn_norm": self.norm, "ffn": self.ffn}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        return self.add(x, m.ffn(m.ffn_norm(x), step))
