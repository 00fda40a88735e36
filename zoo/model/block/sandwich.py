"""Norms before and after the sub-layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.model.block.base import Block
from zoo.model.ffn import FFN

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Sandwich(Block, kind="sandwich"):
    """x + norm(f(norm(x))) (Ding et al., 2021, CogView; Gemma 2)."""

    ffn: FFN

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "attention_norm": self.norm,
            "attention": self.attention,
            "attention_out_norm": self.norm,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
            "ffn_out_norm": self.norm,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        x = self.add(x, m.attention_out_norm(m.attention(m.attention_norm(x), step)))
        return self.add(x, m.ffn_out_norm(m.ffn(m.ffn_norm(x), step)))
