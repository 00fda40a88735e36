# T tokens of a row, S those that an encoder read
"""FLOPs of the rows that a training run meets: so many tokens in each tower, logits of the targets alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from zoo.costs.flops import core_flops, memory_flops, pair_flops, product_flops, row_flops
from zoo.costs.pairs import Look
from zoo.costs.rows import CostTable, tabulate


class RowFlops:
    """Counts the forward FLOPs of rows of a model, by the conventions of `count_flops`' exact. Rows count as they are
    computed, padding included, and the documents packed into one as a single sequence."""

    def __init__(self, spec: Any) -> None:
        table = tabulate(spec)
        self.towers = {name: table.of(name) for name in table.towers}
        self.target = sum(product_flops(own) - product_flops(own, head=False) for own in self.towers.values())
        """Of the head, for one target."""
        self.body = cache(self._count_body)
        self.shown = cache(self._count_shown)

    def _count_body(self, read: int, written: int | None = None) -> int:
        """Count a row without the head's products of targets: one tower reads T tokens, or an encoder reads S and a
        decoder writes T. A decoder alone with cross-attention is given a memory as long as its row."""
        if written is None:
            return sum(_count_tower(own, read, read) for own in self.towers.values())
        return _count_tower(self.towers["encoder"], read, 0) + _count_tower(self.towers["decoder"], written, read)

    def _count_shown(self, prefix: int) -> int:
        """Count the pairs that a prefix of so many tokens adds to a row."""
        return sum(pair_flops(own, lambda look: look.shown_by(prefix)) for own in self.towers.values())


def _count_tower(own: CostTable, tokens: int, memory: int) -> int:
    def pairs(look: Look) -> int:
        return look.pairs(tokens, 0, memory)

    of_memory = memory_flops(own)
    products = (product_flops(own, head=False) - of_memory) * tokens + of_memory * memory
    return products + row_flops(own) + core_flops(own, pairs, tokens)
