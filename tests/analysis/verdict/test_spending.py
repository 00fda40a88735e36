"""Levels of the looks of a group-sequential design."""

from __future__ import annotations

from functools import partial
from statistics import NormalDist

import pytest

from support.simulations import count, tells_at_some_look
from zoo.analysis.verdict.spending import find_look_levels


@pytest.mark.parametrize(
    ("looks", "published"),
    [((1, 2), (2.963, 1.969)), ((1, 2, 3, 4, 5), (4.877, 3.357, 2.680, 2.290, 2.031)), ((7,), (1.960,))],
)
def test_the_bounds_are_those_of_lan_and_demets(looks: tuple[int, ...], published: tuple[float, ...]) -> None:
    """Jennison and Turnbull, 2000; R's ldbounds 2.0, iuse=1, two-sided 5 %."""
    found = [-NormalDist().inv_cdf(level / 2) for level in find_look_levels(looks)]
    assert found == pytest.approx(published, abs=2e-3)


def test_looking_three_times_tells_equal_arms_apart_no_more_often_than_looking_once() -> None:
    looks = (3, 6, 10)
    spent, naive = (count(300, 2, partial(tells_at_some_look, looks=looks, spends=each)) for each in (True, False))
    assert spent <= 0.08 and naive >= 0.085
