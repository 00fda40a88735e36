"""Norms on what the sub-layers give, inside the residual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.model.block.base import Block
from zoo.model.ffn import FFN

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class PostInside(Block, kind="post_inside"):
    """x + norm(f(x)): the norm on what a sub-layer gives, inside the residual (Liu et al., 2021, Swin v2; OLMo 2)."""

    ffn: FFN
    """Feed-forward of the layer."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention": self.attention, "attention_norm": self.norm, "ffn": self.ffn, "ffn_norm": self.norm}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        x = self.add(x, m.attention_norm(m.attention(x, step)))
        return self.add(x, m.ffn_norm(m.ffn(x, step)))
