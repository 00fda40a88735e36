# B rows, T tokens, S keys, H heads, K kv heads, G = H/K, D channels
"""Drop values by random bits that are a function of where each value stands, rather than of what was drawn before.

Every value has a row key (its token, layer and place in the layer) and a column (its channel, or its head and key). Its
bits are a hash of both, as in counter-based generators (Salmon et al., 2011): whoever computes a part of a tensor
drops of it what one process drops, a second computation drops the same, and no generator's state is kept. A CPU and a
GPU have the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""2⁶⁴ over the golden ratio: multiples of it lie far apart (Steele et al., 2014)."""
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""Those of SplitMix64 (Steele et al., 2014)."""
BITS = 16
"""Random bits of a value."""
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


def drop_values(x: Tensor, rows: Tensor, rate: float, first: int = 0, heads: Tensor | None = None) -> Tensor:
    """Drop a share of the values of x [..., D], and scale up the others, so that their mean stays (Srivastava et al.,
    2014).

    `rows`, int64, are the keys of [..., 1]; the columns of x are numbers `first` to `first` + D, for each of the
    `heads`, int64, where there are some, which broadcast to [..., 1], too. The rate is taken to 2⁻¹⁶. Autograd saves a
    byte for each value.
    """
    whole = 1 << BITS
    least = round(rate * whole)
    bits = _draw(take_high(rows), x.shape[-1], first, heads)
    return x.masked_fill(bits < least - whole // 2, 0).mul_(whole / (whole - least))


def _draw(rows: Tensor, width: int, first: int, heads: Tensor | None) -> Tensor:
    """Draw 16 random bits for each of some columns, int16: two columns share a word of 32."""
    words = torch.arange(first // 2, (first + width + 1) // 2, device=rows.device) * GOLDEN
    bits = rows ^ take_high(mix(words if heads is None else mix(heads) + words))
    bits *= FACTORS_32[0]
    bits ^= bits >> 15  # keeps the sign, so that 31 bits go on: to clear it would take another pass
    bits *= FACTORS_32[1]
    bits ^= (bits >> BITS).bitwise_and_((1 << BITS) - 1)
    return bits.view(torch.int16)[..., first % 2 : first % 2 + width]


@dataclass(frozen=True)
class DroppedChances:
    """The share `rate` of attention's probabilities that is dropped: `keys` [B, T] int64 are those of the queries, and
    `first` is the number of the first head here in the whole layer."""

    rate: float
    keys: Tensor
    first: int = 0

    def apply(self, chances: Tensor) -> Tensor:
        """Drop some of the probabilities [B, K, G, T, S]."""
        n_kv_heads, group = chances.shape[1:3]
        heads = torch.arange(self.first + 1, self.first + 1 + n_kv_heads * group, device=chances.device)
        rows = self.keys[:, None, None, :, None]
        return drop_values(chances, rows, self.rate, heads=heads.view(n_kv_heads, group, 1, 1))
