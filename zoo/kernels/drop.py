# B rows, T tokens, S keys, H heads, K kv heads, G = H/K, D channels
"""Compute dropout from random bits that are a function of each value's place, not of a generator's state.

Every value has a row key (token, layer and place in the layer) and a column key (channel, or head and key). Its bits
are a hash of both, as in counter-based generators (Salmon et al., 2011). So ranks that compute parts of a tensor drop
the same values as one process would, recomputation repeats the same mask, and a CPU and a GPU have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoo.lazy import Tensor, torch

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""2⁶⁴ ÷ the golden ratio, whose multiples lie far apart modulo 2⁶⁴ (Steele et al., 2014)."""
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""Multipliers of SplitMix64 (Steele et al., 2014)."""
FACTORS_32 = (0x7FEB352D, 0x846CA68B - (1 << 32))
"""Multipliers of a 32-bit hash (Wellons, 2018, lowbias32)."""


def mix(keys: Tensor) -> Tensor:
    """Hash int64 keys to pseudorandom int64: SplitMix64's finaliser (Steele et al., 2014)."""
    keys = (keys ^ _shift(keys, 30)) * FACTORS[0]
    keys = (keys ^ _shift(keys, 27)) * FACTORS[1]
    return keys ^ _shift(keys, 31)


def _shift(keys: Tensor, places: int) -> Tensor:
    """Shift int64 logically to the right by `places` bits."""
    return (keys >> places) & ((1 << (64 - places)) - 1)


def take_high(keys: Tensor) -> Tensor:
    """Return the upper 32 bits of int64, as int32."""
    return (keys >> 32).to(torch.int32)


def drop_values(x: Tensor, rows: Tensor, columns: Tensor, rate: float) -> Tensor:
    """Apply dropout: set values of x to 0 with probability `rate`, and scale the others by 1 / (1 − rate) (Srivastava
    et al., 2014). `rows` and `columns` are int64 keys that together broadcast to x. Autograd saves a byte per value."""
    dropped = _draw_bits(rows, columns) < round(rate * (1 << 32)) - (1 << 31)
    return x.masked_fill(dropped, 0).mul_(1 / (1 - rate))


def draw_uniform(rows: Tensor, columns: Tensor) -> Tensor:
    """Draw uniform float32 numbers in (0, 1) from the keys of rows and columns, as in `drop_values`."""
    whole = (_draw_bits(rows, columns) >> 9) + (1 << 22)  # 23 bits, so that the midpoint of each step is a float32
    return (whole.float() + 0.5) * 2.0**-23


def _draw_bits(rows: Tensor, columns: Tensor) -> Tensor:
    """Hash the row and column keys of values to pseudorandom int32."""
    bits = take_high(rows) ^ take_high(columns)
    bits *= FACTORS_32[0]
    bits ^= bits >> 15  # an arithmetic shift: clearing the sign would take another pass over the tensor
    bits *= FACTORS_32[1]
    return bits


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of attention probabilities, determined by int64 hash keys: of the queries [B, T], of this rank's heads
    [H] and of the attended tokens [S]."""

    rate: float
    queries: Tensor
    heads: Tensor
    tokens: Tensor

    def split(self, counts: Sequence[int]) -> list[AttentionDropout]:
        """Split into parts that attend separately, with `counts[i]` queries in part i."""
        return [replace(self, queries=each) for each in self.queries.split(counts, 1)]

    def apply(self, probs: Tensor) -> Tensor:
        """Apply dropout to probabilities [B, K, G, T, S]."""
        heads = (self.heads ^ GOLDEN).view(*probs.shape[1:3], 1, 1)  # K G 1 1
        columns = mix(heads + self.tokens[: probs.shape[-1]])
        return drop_values(probs, self.queries[:, None, None, :, None], columns, self.rate)
