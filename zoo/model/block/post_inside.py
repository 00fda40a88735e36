"""Norms on what the sub-layers give, inside the residual."""

from __future__ import annotations

from typing import Any

from zoo.model.block.base import Block
from zoo.model.ffn import FFN


class PostInside(Block, kind="post_inside"):
    """x + norm(f(x)): the norm on what a sub-layer gives, inside the residual (Liu et al., 2021, Swin v2; OLMo 2)."""

    ffn: FFN

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention": self.attention, "attention_norm": self.norm, "ffn": self.ffn, "ffn_norm": self.norm}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        x = self.add(x, m.attention_norm(m.attention(x, step)))
        return self.add(x, m.ffn_norm(m.ffn(x, step)))
