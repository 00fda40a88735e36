# B batch, T tokens, S streams, D model width
"""Hyper-connections around pre-norm sub-layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import Tensor
from zoo.model.block.base import Block
from zoo.model.connection import Connection, StreamFactors, read_streams, write_streams
from zoo.model.ffn import FFN
from zoo.model.ngrams import NGramEmbedding
from zoo.model.norm import give_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.model.step import Step, Weights


class Hyper(Block, kind="hyper"):
    """Read norm(r·x) from several residual streams x, mix the streams, and add w ⊗ f, where f is a sub-layer's output.
    This is done for attention, then for the feed-forward (Zhu et al., 2024, hyper-connections; DeepSeek-V4, 2026).

    The connection has as many streams as the model's `streams`.
    """

    ffn: FFN
    """Feed-forward of the layer."""
    connection: Connection
    """Connection, which makes the factors r and w and the mix. A kind that normalises first reads r·norm(x) in place of
    norm(r·x), with a norm weight for each stream."""
    ngrams: NGramEmbedding | None = None
    """Memory of the last few tokens, which the layer first adds to the streams (Cheng et al., 2026, Engram)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scaled = next((name for name in ("residual_scale", "stream_scale") if getattr(self, name) != 1.0), None)
        if scaled is not None:
            raise ValueError(f"{scaled}: the connection weighs what is written and mixed (leave it out)")
        if self.connection.reads_normed:
            give_weights(self.norm, self.streams)
        if self.ngrams is not None and self.ngrams.n_streams != self.streams:
            found = f"ngrams.n_streams={self.ngrams.n_streams}, connection.n_streams={self.streams}"
            raise ValueError(f"{found}: both are the streams' (the same for both)")

    @property
    def streams(self) -> int:  # type: ignore[override]
        return self.connection.n_streams

    def parts(self, d_model: int) -> dict[str, Any]:
        norm = give_weights(self.norm, self.streams) if self.connection.reads_normed else self.norm
        return {
            **({"ngrams": self.ngrams} if self.ngrams else {}),
            "attention_connection": self.connection,
            "attention_norm": norm,
            "attention": self.attention,
            "ffn_connection": self.connection,
            "ffn_norm": norm,
            "ffn": self.ffn,
        }

    def state(self) -> dict[str, tuple[int, ...]]:
        return super().state() | (self.ngrams.state() if self.ngrams else {})

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        if self.ngrams is not None:
            x = x + m.ngrams(x, step)
        read, factors = self._read(m.attention_connection, m.attention_norm, x)
        x = write_streams(x, m.attention(read, step), factors)
        read, factors = self._read(m.ffn_connection, m.ffn_norm, x)
        return write_streams(x, m.ffn(read, step), factors)

    def _read(self, connection: Weights, norm: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, StreamFactors]:
        """Read a sub-layer's normalised input [B, T, D] from the streams x [B, T, S, D]; also return the factors."""
        if self.connection.reads_normed:
            x = norm(x)
            factors = self.connection.weigh(connection, x)
            return read_streams(x, factors.read), factors
        factors = self.connection.weigh(connection, x)
        return norm(read_streams(x, factors.read)), factors
