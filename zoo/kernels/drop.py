# B rows, T tokens, S keys, H heads, K kv heads, G = H/K, D channels
"""Drop values by random bits that are a function of where each value stands, rather than of what was drawn before.

Every value has a row key (its token, layer and place in the layer) and a column (its channel, or its head and key). Its
bits are a hash of both, as in counter-based generators (Salmon et al., 2011): whoever computes a part of a tensor
drops of it what one process drops, a second computation drops the same, and no generator's state is kept. A CPU and a
GPU have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""2⁶⁴ over the golden ratio: multiples of it lie far apart (Steele et al., 2014)."""
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""Those of SplitMix64 (Steele et al., 2014)."""
FACTORS_32 = (0x7FEB352D, 0x846CA68B - (1 << 32))
"""Those of a hash of 32 bits (Wellons, 2018, lowbias32)."""


def mix(keys: Tensor) -> Tensor:
    """Mix int64 keys to 64 bits that look random: SplitMix64's finaliser (Steele et al., 2014)."""
    keys = (keys ^ _shift(keys, 30)) * FACTORS[0]
    keys = (keys ^ _shift(keys, 27)) * FACTORS[1]
    return keys ^ _shift(keys, 31)


def _shift(keys: Tensor, places: int) -> Tensor:
    """Shift int64 to the right, with zeros from the left."""
    return (keys >> places) & ((1 << (64 - places)) - 1)


def take_high(keys: Tensor) -> Tensor:
    """Take the upper half of int64, as int32."""
    return (keys >> 32).to(torch.int32)


def drop_values(x: Tensor, rows: Tensor, columns: Tensor, rate: float) -> Tensor:
    """Drop a share of the values of x, and scale up the others, so that their mean stays (Srivastava et al., 2014).

    `rows` and `columns` are the keys, int64, which broadcast to x together. Autograd saves a byte for each value.
    """
    dropped = _draw_bits(rows, columns) < round(rate * (1 << 32)) - (1 << 31)
    return x.masked_fill(dropped, 0).mul_(1 / (1 - rate))


def draw_uniform(rows: Tensor, columns: Tensor) -> Tensor:
    """Draw numbers between 0 and 1, neither of which comes up, by keys as those of `drop_values`: float32."""
    whole = (_draw_bits(rows, columns) >> 9) + (1 << 22)  # 23 bits, so that the middle of each step is a float32
    return (whole.float() + 0.5) * 2.0**-23


def _draw_bits(rows: Tensor, columns: Tensor) -> Tensor:
    """Hash the keys of values to int32 that look random."""
    bits = take_high(rows) ^ take_high(columns)
    bits *= FACTORS_32[0]
    bits ^= bits >> 15  # keeps the sign, so that 31 bits go on: to clear it would take another pass
    bits *= FACTORS_32[1]
    return bits


@dataclass(frozen=True)
class DroppedChances:
    """The share `rate` of attention's probabilities that is dropped, by the keys, int64, of the queries [B, T], of the
    heads here [H], and of the row's tokens [S]."""

    rate: float
    queries: Tensor
    heads: Tensor
    tokens: Tensor

    def split(self, counts: Sequence[int]) -> list[DroppedChances]:
        """Those of queries that attend by themselves, so many at a time."""
        return [replace(self, queries=each) for each in self.queries.split(counts, 1)]

    def apply(self, chances: Tensor) -> Tensor:
        """Drop some of the probabilities [B, K, G, T, S]."""
        heads = (self.heads ^ GOLDEN).view(*chances.shape[1:3], 1, 1)  # K G 1 1
        columns = mix(heads + self.tokens[: chances.shape[-1]])
        return drop_values(chances, self.queries[:, None, None, :, None], columns, self.rate)
