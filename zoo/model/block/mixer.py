"""A mixer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.model.block.base import Block

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Mixer(Block, kind="mixer"):
    """x + attention(norm(x)), without a feed-forward (Gu and Dao, 2023, Mamba)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention_norm": self.norm, "attention": self.attention}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        return self.add(x, m.attention(m.attention_norm(x), step))
