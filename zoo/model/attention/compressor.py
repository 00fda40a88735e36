# B batch, T tokens, E entries, m tokens of an entry, C channels, D model width
"""Compress consecutive tokens to one entry, which is a key and a value at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from zoo.model.attention.entries import pool_entries
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Linear, Sized, Spec, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step, Weights


class Compressor(Spec, axis="compressor", default="disjoint"):
    """Make one entry of consecutive tokens of a text: the sum of x·W_v, weighted for each channel by a softmax over
    x·W_g + the place's own number, and normalised (DeepSeek-V4, 2026)."""

    overlap: ClassVar[bool] = False  # whether a token counts for the entry after its own, too

    rate: Annotated[int, Ge(2)]
    """Number of tokens that make one entry."""
    norm: WholeNorm = RMSNorm()
    """Norm of each entry."""

    @property
    def series(self) -> int:
        """How many entries a token counts for, by weights of its own for each."""
        return 2 if self.overlap else 1

    def list_parts(self, d_model: int, width: int, prefix: str) -> dict[str, Any]:
        """List its weights, for entries `width` wide, by names that begin with `prefix`."""
        made = self.series * width
        return {
            f"{prefix}kv": Linear(d_model, made),
            f"{prefix}gate": Linear(d_model, made, precise=True),
            f"{prefix}places": Weight((self.rate, made)),
            f"{prefix}norm": Sized(self.norm, width),
        }

    def list_states(self, width: int, prefix: str) -> dict[str, tuple[int, ...]]:
        """List what is kept of tokens whose entry lacks some: the sums of a softmax over them."""
        return {f"{prefix}pending": (self.series, 3, width)}

    def count_loose(self, width: int, tokens: int) -> int:
        """Count the values and gates of tokens of which there is no entry yet, and with an overlap those that the last
        window's tokens have for the next one, where each is kept by itself."""
        overlapping = self.rate * width if self.overlap and tokens >= self.rate else 0
        return 2 * (tokens % self.rate * self.series * width + overlapping)

    def compress(self, m: Weights, x: Tensor, step: Step, prefix: str) -> Tensor:
        """The entries [B, E, C] of the windows that x [B, T, D] is in, not yet rotated."""
        kv, gate, places, norm = (getattr(m, prefix + name) for name in ("kv", "gate", "places", "norm"))
        return norm(step.apply(pool_entries, f"{prefix}pending", kv(x), gate(x), places, self.overlap))


class Disjoint(Compressor, kind="disjoint"):
    """Entries of tokens that no other entry has (heavily compressed attention: DeepSeek-V4, 2026)."""


class Overlapping(Compressor, kind="overlapping"):
    """Entries of `rate` tokens and of those before them, whose values and gates for the later entry are made by weights
    of their own (compressed sparse attention: DeepSeek-V4, 2026)."""

    overlap: ClassVar[bool] = True
