"""A mixer alone."""

from __future__ import annotations

from typing import Any

from zoo.model.block.base import Block


class Mixer(Block, kind="mixer"):
    """x + attention(norm(x)), without a feed-forward (Gu and Dao, 2023, Mamba)."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"attention_norm": self.norm, "attention": self.attention}

    def forward(self, m: Any, x: Any, step: Any) -> Any:
        return self.add(x, m.attention(m.attention_norm(x), step))
