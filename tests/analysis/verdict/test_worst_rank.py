"""Exact tests of arms of which some runs diverged, against counting every arrangement."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from zoo.analysis.verdict.worst_rank import compare_ranks, fisher_exact, rank_worst


def count_all(ranks: list[float], n: int) -> float:
    """Deal the ranks to two arms in every way, and count those whose sums are as far from chance as the first n's."""
    middle = n * sum(ranks) / len(ranks)
    away = abs(sum(ranks[:n]) - middle)
    sums = [sum(ranks[at] for at in chosen) for chosen in itertools.combinations(range(len(ranks)), n)]
    return sum(abs(each - middle) >= away - 1e-9 for each in sums) / len(sums)


def test_diverged_runs_rank_last_and_alike() -> None:
    assert rank_worst([2.0, math.inf, 1.0, math.nan, 2.0]) == [2.5, 4.5, 1.0, 4.5, 2.5]


def test_the_rank_sum_test_counts_every_arrangement() -> None:
    drawn = random.Random(0)
    for _ in range(40):
        n, m = drawn.randint(2, 5), drawn.randint(2, 5)
        values = [math.inf if drawn.random() < 0.3 else drawn.randint(0, 6) / 2 for _ in range(n + m)]
        away, p = compare_ranks(values[:n], values[n:])
        ranks = rank_worst(values)
        assert p == pytest.approx(count_all(ranks, n))
        assert away == pytest.approx(sum(ranks[:n]) - n * sum(ranks) / (n + m))


def test_two_of_five_runs_that_a_change_saves_count_for_it() -> None:
    """Every run of the arm is before every run of the baseline, two of which diverged: 2 of 252 arrangements."""
    away, p = compare_ranks([1.0, 1.1, 1.2, 1.3, 1.4], [1.5, 1.6, 1.7, math.inf, math.inf])
    assert away < 0 and p == pytest.approx(2 / math.comb(10, 5))


@pytest.mark.parametrize(
    ("table", "published"),
    [((3, 4, 1, 4), 0.4857), ((8, 10, 1, 6), 0.0350), ((0, 5, 2, 5), 0.4444)],
)
def test_fishers_exact_test_has_its_published_values(table: tuple[int, int, int, int], published: float) -> None:
    """Fisher's tea (1935): 3 of 4 cups against 1 of 4; the second table is that of scipy's documentation."""
    assert fisher_exact(*table) == pytest.approx(published, abs=5e-5)
