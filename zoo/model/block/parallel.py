"""Attention and feed-forward side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.model.block.base import Block
from zoo.model.ffn import FFN

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Parallel(Block, kind="parallel"):
    """x + attention(norm(x)) + ffn(norm(x)) (Wang and Komatsuzaki, 2021, GPT-J; PaLM, Falcon).

    `shared_norm` gives both the same norm (GPT-J); otherwise each has its own (GPT-NeoX).
    """

    ffn: FFN
    shared_norm: bool = True

    @property
    def reductions(self) -> int:
        """One: attention and feed-forward are added up on each rank first (Wang and Komatsuzaki, 2021)."""
        return 1

    def parts(self, d_model: int) -> dict[str, Any]:
        second = {} if self.shared_norm else {"ffn_norm": self.norm}
        return {"attention_norm": self.norm, "attention": self.attention, **second, "ffn": self.ffn}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        normed = m.attention_norm(x)
        inner = normed if self.shared_norm else m.ffn_norm(x)
        return self.add(x, m.attention(normed, step) + m.ffn(inner, step))
