"""Cut the layers of a model into the chunks of a pipeline, balanced by each layer's training FLOPs.

Pricing (`zoo.costs.rank_tensors.stages`) and the training program (`zoo.training.layout`) call the same function. A
layer's time is taken to be proportional to its training FLOPs on one sequence: products and visible pairs, forward and
backward. An indexer counts its forward pass only. The embedding counts 0, the head its product. Example: with 8 stages
Llama 3 405B has 15 layers on the first and on the last stage, and 16 on every other (Dubey et al., 2024, Llama 3,
§3.3.2, also put one layer less on these two).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from zoo.costs.flops import is_row_wise
from zoo.costs.rows import AttentionRow, PartRow, Priced, tabulate
from zoo.spec.parts import count_kinds

BEFORE, BEHIND = ("embedding", "position"), ("norm", "project", "pooler", "head")
"""The slots of a tower before its layers, and the slots behind them. A slot in neither list counts as behind."""


def cut_layers(spec: Priced, context: int, chunks: int) -> tuple[tuple[int, int], ...]:
    """Cut the layers of all towers, one tower after the other, into `chunks` runs (start, end), end excluded. The
    slowest chunk is as fast as possible. The others are as even as that allows; later ones get the remainder."""
    return cut_evenly(time_layers(spec, context), chunks) if chunks > 1 else ((0, count_layers(spec)),)


def count_layers(spec: Priced) -> int:
    """Count the layers of all towers."""
    return sum(len(tower.pattern) for tower in spec.towers().values())


def time_layers(spec: Priced, context: int) -> list[int]:
    """Count the training FLOPs of each layer on one sequence. A tower's last layer includes the parts behind the layers
    (head, final norm)."""
    table, sums = tabulate(spec), dict[tuple[str, str | None], float]()
    for row in table.parts:
        if row.kind is not None or row.slot not in BEFORE:
            made = count_part(row, context) * count_passes(row)
            sums[row.where, row.kind] = sums.get((row.where, row.kind), 0.0) + made
    for each in table.attentions:
        made = count_attention(each, context) * count_passes(each)
        sums[each.where, each.kind] = sums.get((each.where, each.kind), 0.0) + made
    times: list[int] = []
    for name, tower in spec.towers().items():
        own = {kind: round(sums[name, kind] / count) for kind, count in count_kinds(tower.pattern).items()}
        times += [own[kind] for kind in tower.pattern]
        times[-1] += round(sums.get((name, None), 0.0))
    return times


def count_passes(row: PartRow | AttentionRow) -> int:
    """Count the forward passes that training a part costs: 3 (its backward pass is worth 2), or 1 without gradients."""
    return 3 if row.learns else 1


def count_part(row: PartRow, context: int) -> float:
    """Count the FLOPs of a part in a forward pass of a sequence, over all its uses."""
    return row.part.flops * row.used * (1 if is_row_wise(row) else context)


def count_attention(row: AttentionRow, context: int) -> float:
    """Sum an attention's `pair_flops` and `other_flops` (QKᵀ, PV, states) in a forward pass of a sequence, over all its
    uses."""
    return (row.pair_flops(row.look.pairs(context, 0, context)) + row.other_flops(context)) * row.used


def cut_evenly(times: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """Cut a list into `count` non-empty runs whose largest sum is as small as possible.

    Example: 2, 2, 2, 2, 2, 2, 2, 5 in 4 runs are 2 + 2, 2 + 2, 2 + 2 + 2, 5. The largest sum is 6; no cut into 4 runs
    has a smaller one.
    """
    sums = [0, *accumulate(times)]
    latest = _find_latest(sums, count, _find_bound(sums, count))
    runs, start = [], 0
    for left in range(count - 1, 0, -1):
        fair = sums[start] + (sums[-1] - sums[start]) // (left + 1)
        end = max(bisect_right(sums, fair) - 1, start + 1, latest[left])
        end = min(end, len(times) - left)
        runs.append((start, end))
        start = end
    return (*runs, (start, len(times)))


def _find_bound(sums: Sequence[int], count: int) -> int:
    """Find by bisection the smallest bound on a run's sum for which `count` runs suffice."""
    low, high = 0, sums[-1]
    while low < high:
        middle = (low + high) // 2
        if _find_latest(sums, count, middle)[count] <= 0:
            high = middle
        else:
            low = middle + 1
    return low


def _find_latest(sums: Sequence[int], count: int, bound: int) -> list[int]:
    """Find for n = 0 to `count` the earliest element from which n runs, each with a sum of at most `bound`, reach the
    end of the list. `sums` are cumulative, from 0."""
    found = [len(sums) - 1]
    for _ in range(count):
        found.append(min(bisect_left(sums, sums[found[-1]] - bound), found[-1]))
    return found
