"""Bounds of a variance: normal runs are drawn, and chi-square's known quantiles compared."""

import math

import numpy as np
import pytest

from zoo.analysis.verdict.spread_bounds import compute_cdf, find_variance_bounds


def test_chi_square_is_that_of_one_and_of_two_squared_normal_numbers():
    for x in (0.02, 0.5, 3.0, 12.0):
        assert compute_cdf(x, 1) == pytest.approx(math.erf(math.sqrt(x / 2)), abs=1e-12)
        assert compute_cdf(x, 2) == pytest.approx(1 - math.exp(-x / 2), abs=1e-12)


@pytest.mark.parametrize("runs", [2, 5, 30])
def test_the_bounds_hold_the_true_variance_in_four_of_five_experiments(runs):
    estimates = np.random.default_rng(0).standard_normal((20_000, runs)).var(axis=1, ddof=1)
    low, high = find_variance_bounds(runs - 1)
    assert ((low * estimates < 1) & (high * estimates > 1)).mean() == pytest.approx(0.8, abs=0.01)
