# T tokens of a row, S tokens that an encoder read
"""Count the FLOPs of a training run's rows (sequences) by their length; those of the head by the number of targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from zoo.costs.flops import core_flops, memory_flops, pair_flops, product_flops, row_flops, skipped_flops
from zoo.costs.pairs import Look
from zoo.costs.rows import CostTable, Priced, tabulate

CountPairs = Callable[[Look], int]


class RowFlops(NamedTuple):
    """The FLOPs of a model's forward or backward pass over rows (sequences), by the convention `exact` of
    `count_flops`. A padding token counts as much as any other."""

    body: Callable[..., int]
    """FLOPs of a row without those of `target`: `body(T)` for one tower, `body(S, T)` for an encoder and a decoder. A
    lone decoder with cross-attention reads an encoder's output as long as its row."""
    target: int
    """FLOPs of the head for one target; 0 for a head that reads whole rows."""
    pairs: Callable[..., int]
    """FLOPs of the (query, key) pairs in `body`, with the same arguments. They may be the lengths of a packed document
    too."""
    shown: Callable[[int], int]
    """`shown(n)`: FLOPs of the (query, key) pairs that a prefix of n tokens, which all see one another, adds to a
    row."""


def list_row_passes(spec: Priced) -> tuple[RowFlops, RowFlops]:
    """Return the FLOPs of the forward and of the backward pass, for a model whose weights all train."""
    table = tabulate(spec)

    def forward_target(own: CostTable) -> int:
        return product_flops(own) - product_flops(own, head=False)

    def backward_tower(own: CostTable, tokens: int, memory: int) -> int:
        skipped = skipped_flops(own, lambda look: look.pairs(tokens, 0, memory), tokens)
        return 2 * count_forward(own, tokens, memory) - skipped

    def backward_pairs(own: CostTable, pairs: CountPairs) -> int:
        return 2 * pair_flops(own, pairs) - skipped_flops(own, pairs, 0)

    return (
        count_by_row(table, count_forward, forward_target, pair_flops),
        count_by_row(table, backward_tower, lambda own: 2 * forward_target(own), backward_pairs),
    )


def count_by_row(
    table: CostTable,
    tower: Callable[[CostTable, int, int], int],
    target: Callable[[CostTable], int],
    paired: Callable[[CostTable, CountPairs], int],
) -> RowFlops:
    """Make the RowFlops of a model from functions of a tower's CostTable `own`: `tower(own, tokens, memory)` counts a
    row without its targets, `target(own)` a target, and `paired(own, pairs)` pairs."""
    towers = {name: table.of(name) for name in table.towers}

    def by_row(tower: Callable[[CostTable, int, int], int]) -> Callable[..., int]:
        def count(read: int, written: int | None = None) -> int:
            if written is None:
                return sum(tower(own, read, read) for own in towers.values())
            return tower(towers["encoder"], read, 0) + tower(towers["decoder"], written, read)

        return cache(count)

    def tower_pairs(own: CostTable, tokens: int, memory: int) -> int:
        return paired(own, lambda look: look.pairs(tokens, 0, memory))

    def prefix(tokens: int) -> int:
        return sum(paired(own, lambda look: look.shown_by(tokens)) for own in towers.values())

    return RowFlops(by_row(tower), sum(map(target, towers.values())), by_row(tower_pairs), cache(prefix))


def count_forward(own: CostTable, tokens: int, memory: int) -> int:
    """Count a tower's forward FLOPs for a row of `tokens`, without the head's FLOPs for targets. The tower reads
    `memory` tokens of an encoder."""

    def pairs(look: Look) -> int:
        return look.pairs(tokens, 0, memory)

    of_memory = memory_flops(own)
    products = (product_flops(own, head=False) - of_memory) * tokens + of_memory * memory
    return products + row_flops(own) + core_flops(own, pairs, tokens)
