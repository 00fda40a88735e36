# T tokens of a row, S tokens that an encoder read
"""Count the FLOPs of a training run's rows by their length. The head's FLOPs are counted per target, not per token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from zoo.costs.flops import core_flops, memory_flops, pair_flops, product_flops, row_flops, skipped_flops
from zoo.costs.pairs import Look
from zoo.costs.rows import CostTable, Priced, tabulate


class RowFlops:
    """Count the forward FLOPs of a model's rows, as `count_flops` does under `exact`. A row counts as it is computed:
    padding included, packed documents as a single sequence."""

    def __init__(self, spec: Priced) -> None:
        table = tabulate(spec)
        self.towers = {name: table.of(name) for name in table.towers}
        self.target = sum(product_flops(own) - product_flops(own, head=False) for own in self.towers.values())
        """FLOPs of the head for one target; 0 for a head that reads whole rows."""
        self.body = cache(partial(self._count_row, _count_tower))
        """FLOPs of a row without those of `target`: `body(T)` for one tower, `body(S, T)` for an encoder and a decoder.
        A lone decoder with cross-attention reads an encoder's output as long as its row."""
        self.skipped = cache(partial(self._count_row, _count_skipped))
        """FLOPs of gradients that nothing needs: backward pass = 2 × forward pass − these. Takes the arguments of
        `body`."""
        self.shown = cache(self._count_shown)
        """`shown(n)`, for a prefix of n tokens that all see one another: the forward FLOPs of the (query, key) pairs
        that the prefix adds to a row, and the FLOPs of these pairs' gradients that nothing needs."""

    def _count_row(self, count: Callable[[CostTable, int, int], int], read: int, written: int | None = None) -> int:
        if written is None:
            return sum(count(own, read, read) for own in self.towers.values())
        return count(self.towers["encoder"], read, 0) + count(self.towers["decoder"], written, read)

    def _count_shown(self, prefix: int) -> tuple[int, int]:
        def pairs(look: Look) -> int:
            return look.shown_by(prefix)

        whole = sum(pair_flops(own, pairs) for own in self.towers.values())
        return whole, sum(skipped_flops(own, pairs, 0) for own in self.towers.values())


def _count_skipped(own: CostTable, tokens: int, memory: int) -> int:
    return skipped_flops(own, lambda look: look.pairs(tokens, 0, memory), tokens)


def _count_tower(own: CostTable, tokens: int, memory: int) -> int:
    def pairs(look: Look) -> int:
        return look.pairs(tokens, 0, memory)

    of_memory = memory_flops(own)
    products = (product_flops(own, head=False) - of_memory) * tokens + of_memory * memory
    return products + row_flops(own) + core_flops(own, pairs, tokens)
