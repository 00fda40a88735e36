# B batch, T tokens, D model width
"""Positions added to the embedding: a trained table, or sines and cosines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.position.base import Position
from zoo.spec import Buffer, Embedding

if TYPE_CHECKING:
    from zoo.model.step import Weights


class Learned(Position, kind="learned"):
    """A trained vector for each position, added to the embedding (Gehring et al., 2017; GPT-2, BERT)."""

    max_seq_len: PositiveInt
    """Number of positions in the table: the longest sequence, in tokens."""
    offset: NonNegativeInt = 0
    """Number of rows of the table before the row of position 0 (OPT and BART: 2)."""
    skip_id: NonNegativeInt | None = None  # type: ignore[misc]
    """Token id that positions do not count: its tokens get position -1 (RoBERTa: the padding id, with an `offset` one
    larger than this id)."""

    def __post_init__(self) -> None:
        if self.skip_id is not None and not self.offset:
            raise ValueError(
                "skip_id puts skipped tokens at position -1, and the table begins at 0 (offset: 1 or more)"
            )

    @property
    def limit(self) -> int | None:  # type: ignore[override]
        return self.max_seq_len

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"table": Embedding(self.max_seq_len + self.offset, d_model)}

    def embed(self, m: Weights, x: Tensor, positions: Tensor) -> Tensor:
        return x + m.table(positions + self.offset if self.offset else positions)


class Sinusoidal(Position, kind="sinusoidal"):
    """Fixed sines and cosines added to the embedding (Vaswani et al., 2017, §3.5), computed in float32."""

    theta: PositiveFloat = 10000.0
    """Base of the frequencies: pair i turns by theta^(−2i/D) radians per position."""
    interleaved: bool = True
    """Whether sines and cosines alternate, as in the paper. If false, all sines come before all cosines (tensor2tensor;
    Marian, Pegasus)."""
    inclusive: bool = False
    """Whether the slowest wave turns by 1/theta radians a position (tensor2tensor; M2M-100), rather than by theta^(−1 +
    2/D)."""
    offset: NonNegativeInt = 0
    """Number added to each position."""
    skip_id: NonNegativeInt | None = None  # type: ignore[misc]
    """Token id that positions do not count: its tokens get no vector."""
    rows: PositiveInt | None = None
    """Number of positions of a saved, untrained table of the waves (Pegasus); null to compute the waves."""

    def __post_init__(self) -> None:
        if self.rows and (self.offset or self.skip_id is not None):
            raise ValueError("rows is a table of positions from 0 on (no offset and no skip_id with it)")

    @property
    def limit(self) -> int | None:  # type: ignore[override]
        return self.rows

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"table": Buffer((self.rows, d_model), init=self._fill)} if self.rows else {}

    def embed(self, m: Weights, x: Tensor, positions: Tensor) -> Tensor:
        if self.rows:
            return x + m.table[positions].to(x.dtype)
        waves = self.draw_waves(positions + self.offset, x.shape[-1])
        return x + (waves if self.skip_id is None else waves * (positions >= 0)[..., None]).to(x.dtype)

    def draw_waves(self, positions: Tensor, width: int) -> Tensor:
        """Compute the vectors [B, T, width] of positions [B, T], in float32."""
        steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
        last = width - 2 if self.inclusive else width
        angles = positions[..., None].float() * self.theta ** (-steps / max(last, 1))
        both = (angles.sin(), angles.cos())
        laid = torch.stack(both, -1).flatten(-2) if self.interleaved else torch.cat(both, -1)
        return laid[..., :width]

    def _fill(self, table: Tensor) -> None:
        table.copy_(self.draw_waves(torch.arange(len(table), device=table.device), table.shape[-1]))
