"""Compute the order of training rows: which source a row is read from, and which window of that source.

Both are functions of the row's number alone, so a run's position is one count of rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from zoo.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

LEAST_ROUNDS = 24
ROUNDS_A_BIT = 6  # rounds for each bit of n, as the proof of Hoang et al. (2012) requires
LONGEST_PERIOD = 100_000  # rows: a mix must repeat within this many


class Permutation:
    """A pseudo-random permutation of 0 … n − 1, computed by index: swap-or-not (Hoang, Morris and Rogaway, 2012).

    Each round pairs x with (k − x) mod n, and a hash of the larger of the two decides whether they change places. This
    works for any n; a Feistel network needs a power of two and is poor for a few elements. A shuffled array would take
    8 bytes an element, and numpy does not promise the same shuffle in later versions.

    `key` is any text; the rounds are derived from it by SHAKE-256, so the order is the same on every machine.
    """

    def __init__(self, n: int, key: str) -> None:
        import numpy as np

        rounds = max(LEAST_ROUNDS, ROUNDS_A_BIT * n.bit_length())
        material = np.frombuffer(hashlib.shake_256(key.encode()).digest(16 * rounds), "<u8").reshape(rounds, 2)
        self.n = n
        self._shifts, self._keys = material[:, 0] % np.uint64(n), material[:, 1]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Return the permuted index, int64, of each index in `places` (0 … n − 1)."""
        import numpy as np

        x, n, top = places.astype(np.uint64), np.uint64(self.n), np.uint64(63)
        for shift, key in zip(self._shifts, self._keys, strict=True):
            partner = (shift + n - x) % n
            swaps = scramble(np.maximum(x, partner) ^ key) >> top
            x = np.where(swaps.astype(bool), partner, x)
        return x.astype(np.int64)


def scramble(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64s, so that each depends on all: the finaliser of SplitMix64 (Steele et al., 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Interleaving:
    """Interleaves sources by weight: of the first n rows, source i gives n·wᵢ/Σw rows, off by less than one.

    The weights are scaled to whole numbers aᵢ with sum P. The order repeats after P rows, which hold exactly aᵢ of
    source i. Row j of source i must come at row ⌊j·P/aᵢ⌋ or later, and before row ⌈(j + 1)·P/aᵢ⌉, its deadline. Among
    the rows that may come next, the one with the earliest deadline is taken, which meets all deadlines (Pfair
    scheduling; Baruah et al., 1996).

    Example: weights 2 and 1 give sources 0, 0, 1, 0, 0, 1, …
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        import numpy as np

        shares, self.period = count_shares(weights)
        given = [0] * len(shares)
        order, index = np.empty(self.period, np.int64), np.empty(self.period, np.int64)
        for row in range(self.period):
            ready = [i for i, share in enumerate(shares) if given[i] * self.period // share <= row]
            source = min(ready, key=lambda i: -(-(given[i] + 1) * self.period // shares[i]))
            order[row], index[row] = source, given[source]
            given[source] += 1
        self._order, self._index, self._shares = order, index, np.array(shares)

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each row's source, and its number among the rows of that source."""
        repeats, place = rows // self.period, rows % self.period
        source = self._order[place]
        return source, repeats * self._shares[source] + self._index[place]


def count_shares(weights: Sequence[Fraction]) -> tuple[list[int], int]:
    """Scale weights to whole numbers without a common divisor. Returns the whole numbers and their sum. Raises
    ConfigError if the sum is above LONGEST_PERIOD."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    shares = [each // math.gcd(*whole) for each in whole]
    if sum(shares) > LONGEST_PERIOD:
        found = f"found weights that repeat after {sum(shares):,} rows"
        raise ConfigError(f"data.of: a mix repeats within {LONGEST_PERIOD:,} rows, {found} (fewer digits)")
    return shares, sum(shares)
