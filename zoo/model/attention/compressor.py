# B batch, T tokens, E entries, m tokens of an entry, C channels, D model width
"""Compress consecutive tokens into one entry, which is a key and a value at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from zoo.lazy import Tensor
from zoo.model.attention.entries import pool_entries
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Linear, Sized, Spec, Weight

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class Compressor(Spec, axis="compressor", default="disjoint"):
    """Make one entry for every `rate` consecutive tokens of a text: the normalised sum of x·W_v, weighted in each
    channel by a softmax over x·W_g + a learned bias of the token's place in the entry (DeepSeek-V4, 2026)."""

    overlap: ClassVar[bool] = False  # whether a token also contributes to the next entry

    rate: Annotated[int, Ge(2)]
    """Number of tokens from the start of one entry to the start of the next."""
    norm: WholeNorm = RMSNorm()
    """Norm of each entry."""

    @property
    def series(self) -> int:
        """Number of entries that a token contributes to, with separate weights for each."""
        return 2 if self.overlap else 1

    def list_parts(self, d_model: int, width: int, prefix: str) -> dict[str, Any]:
        """List the compressor's weights for entries `width` wide, under names that begin with `prefix`."""
        made = self.series * width
        return {
            f"{prefix}kv": Linear(d_model, made),
            f"{prefix}gate": Linear(d_model, made, precise=True),
            f"{prefix}places": Weight((self.rate, made)),
            f"{prefix}norm": Sized(self.norm, width),
        }

    def list_states(self, width: int, prefix: str) -> dict[str, tuple[int, ...]]:
        """List the states (name → shape) of entries `width` wide: the running sums of the softmax over an incomplete
        entry's tokens."""
        return {f"{prefix}pending": (self.series, 3, width)}

    def count_loose(self, width: int, tokens: int) -> int:
        """Count the numbers that a row of `tokens` tokens would cache if values and gates of single tokens were kept,
        not running sums: those of tokens without an entry yet and, with an overlap, of the last complete entry's
        tokens, which the next entry reads."""
        overlapping = self.rate * width if self.overlap and tokens >= self.rate else 0
        return 2 * (tokens % self.rate * self.series * width + overlapping)

    def compress(self, m: Weights, x: Tensor, step: Step, prefix: str) -> Tensor:
        """Compute the entries [B, E, C], not rotated, to which the tokens x [B, T, D] belong."""
        kv, gate, places, norm = (getattr(m, prefix + name) for name in ("kv", "gate", "places", "norm"))
        return norm(step.apply(pool_entries, f"{prefix}pending", kv(x), gate(x), places, self.overlap))


class Disjoint(Compressor, kind="disjoint"):
    """Entries that have no token in common (heavily compressed attention: DeepSeek-V4, 2026)."""


class Overlapping(Compressor, kind="overlapping"):
    """Entries that overlap: each is made of its `rate` tokens and of the `rate` tokens before them (compressed sparse
    attention: DeepSeek-V4, 2026). A token contributes to the later entry with separate weights for values and gates."""

    overlap: ClassVar[bool] = True
