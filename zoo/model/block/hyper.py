# B batch, T tokens, S streams, D model width
"""Hyper-connections around pre-norm sub-layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.model.block.base import Block
from zoo.model.connection import Connection, read_streams, write_streams
from zoo.model.ffn import FFN

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Hyper(Block, kind="hyper"):
    """Read norm(r·x) from several residual streams x, write w ⊗ f and mix the streams, once for attention and once for
    the feed-forward (Zhu et al., 2024, hyper-connections; DeepSeek-V4, 2026).

    The `connection` says how the factors are made of the streams. The model's `streams` are as many as its.
    """

    ffn: FFN
    connection: Connection

    def __post_init__(self) -> None:
        super().__post_init__()
        scaled = next((name for name in ("residual_scale", "stream_scale") if getattr(self, name) != 1.0), None)
        if scaled is not None:
            raise ValueError(f"{scaled}: the connection weighs what is written and mixed (leave it out)")

    @property
    def streams(self) -> int:
        return self.connection.n_streams

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "attention_connection": self.connection,
            "attention_norm": self.norm,
            "attention": self.attention,
            "ffn_connection": self.connection,
            "ffn_norm": self.norm,
            "ffn": self.ffn,
        }

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        factors = self.connection.weigh(m.attention_connection, x)
        x = write_streams(x, m.attention(m.attention_norm(read_streams(x, factors.read)), step), factors)
        factors = self.connection.weigh(m.ffn_connection, x)
        return write_streams(x, m.ffn(m.ffn_norm(read_streams(x, factors.read)), step), factors)
