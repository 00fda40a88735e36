"""Effective speedups, and what their intervals cover."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from support.simulations import count, covers_speedup
from zoo.analysis.verdict.speedup import PowerLaw, find_speedup


@pytest.mark.parametrize(
    ("baseline", "variant", "limit", "exponent", "published"),
    [(3.8104, 3.7542, 1.6, 0.0941, 1.315), (2.8723, 2.8508, 1.2, 0.0842, 1.166)],
)
def test_an_effective_speedup_is_as_published(
    baseline: float, variant: float, limit: float, exponent: float, published: float
) -> None:
    assert PowerLaw(limit, exponent).speedup(baseline, variant) == pytest.approx(published, abs=5e-4)


def test_an_effective_speedup_is_the_budget_at_which_the_law_has_the_loss() -> None:
    """A baseline of L = 2 + 30·D^−0.3 trained 1.7 times as long is 1.7 times as good."""
    tokens, factor = 4e6, 1.7
    base, own = 2 + 30 * tokens**-0.3, 2 + 30 * (factor * tokens) ** -0.3
    found = find_speedup({0: own}, {0: base}, [PowerLaw(2, 0.3)])
    assert found.factor == pytest.approx(factor) and found.interval is None
    assert found.times(0.5).factor == pytest.approx(factor / 2)
    assert PowerLaw(2, 0.3).speedup(3, 1.9) == math.inf and math.isnan(PowerLaw(2, 0.3).speedup(1.9, 1.8))


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_interval_of_a_speedup_holds_the_true_one_in_nineteen_experiments_of_twenty(seeds: int) -> None:
    assert count(600, 4, partial(covers_speedup, seeds=seeds)) == pytest.approx(0.95, abs=0.03)


def test_the_uncertainty_of_the_law_widens_the_interval() -> None:
    losses, baseline = {0: 2.38, 1: 2.39, 2: 2.37}, {0: 2.40, 1: 2.41, 2: 2.40}
    drawn = np.random.default_rng(5)
    laws = [PowerLaw(2, 0.3), *(PowerLaw(2, 0.3 + 0.03 * each) for each in drawn.standard_normal(50))]
    narrow, wide = (find_speedup(losses, baseline, each).interval for each in (laws[:1], laws))
    assert narrow is not None and wide is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("errors", [(0.02, 0.0), (0.0, 0.02)])
def test_the_error_of_either_arms_searched_rate_widens_the_interval(errors: tuple[float, float]) -> None:
    """Of four seeds whose noise is far smaller: 1.96 errors times ∂ ln S/∂L, which is 1 ÷ α(L − L∞)."""
    losses, baseline = {at: 2.3 + 1e-6 * at for at in range(4)}, dict.fromkeys(range(4), 2.4)
    found = find_speedup(losses, baseline, [PowerLaw(2, 0.3)], errors)
    assert found.interval is not None
    half = 1.96 * math.hypot(errors[0] / 0.3 / 0.4, errors[1] / 0.3 / 0.3)
    assert math.log(found.interval[1] / found.factor) == pytest.approx(half, rel=1e-3)
    assert find_speedup(losses, baseline, [PowerLaw(2, 0.3)], (math.inf, 0.0)).interval is None
