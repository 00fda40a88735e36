"""Compare two arms in which some runs diverged.

A diverged run has no loss, and leaving it out would favour its arm. In worst-rank analysis (Lachin, 1999) all diverged
runs rank equal, behind every finished run, and the arms are compared by the rank-sum test (Wilcoxon, 1945; Mann and
Whitney, 1947). The p-value is exact: all ways of dealing the observed ranks to the two arms are counted. Fisher's exact
test (1935) tells whether one arm diverges more often than the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence


def rank_worst(values: Sequence[float]) -> list[float]:
    """Rank values from 1, equal values at their mean rank; values that are not finite are equal and rank last."""
    keys = [value if math.isfinite(value) else math.inf for value in values]
    ordered = sorted(keys)
    mean_rank = {key: ordered.index(key) + (1 + ordered.count(key)) / 2 for key in set(keys)}
    return [mean_rank[key] for key in keys]


def compare_ranks(losses: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Return how far the arm's sum of ranks lies from its mean under chance (below 0: the arm is better), and the exact
    two-sided p-value of the rank-sum test."""
    ranks = rank_worst([*losses, *baseline])
    n, total = len(losses), len(ranks)
    doubled = [round(2 * rank) for rank in ranks]  # whole numbers: mean ranks are halves
    middle = n * sum(doubled) / total
    away = sum(doubled[:n]) - middle
    ways = _count_sums(doubled, n)
    as_far = sum(count for found, count in ways.items() if abs(found - middle) >= abs(away) - 1e-9)
    return away / 2, as_far / math.comb(total, n)


def _count_sums(values: Sequence[int], n: int) -> dict[int, int]:
    """Count the subsets of `n` of the values, by their sum."""
    found: list[dict[int, int]] = [{0: 1}, *({} for _ in range(n))]
    for value in values:
        for size in range(n, 0, -1):
            for total, count in found[size - 1].items():
                found[size][total + value] = found[size].get(total + value, 0) + count
    return found[n]


@functools.lru_cache(4096)
def fisher_exact(events: int, runs: int, other_events: int, other_runs: int) -> float:
    """Give Fisher's exact two-sided p-value for `events` of `runs` against `other_events` of `other_runs`."""
    together, total = events + other_events, runs + other_runs
    ways = {
        k: math.comb(runs, k) * math.comb(other_runs, together - k)
        for k in range(max(0, together - other_runs), min(runs, together) + 1)
    }
    return sum(each for each in ways.values() if each <= ways[events]) / math.comb(total, together)
