"""Verdicts on arms: the statistics have their published values and error rates."""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pytest

from support.simulations import SIGMA, count, diverges_by_chance, is_falsely_equivalent, places_falsely
from zoo.analysis.verdict.comparison import Comparison, adjust_by_holm, compare_arms, find_front, find_levels
from zoo.analysis.verdict.difference import MeanDifference
from zoo.analysis.verdict.power import LEVEL, count_seeds, count_seeds_per_arm, find_smallest_effect
from zoo.analysis.verdict.student import student_cdf, student_quantile


@pytest.mark.parametrize(
    ("share", "freedom", "published"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 4, 2.7764), (0.95, 9, 1.8331), (0.995, 30, 2.75), (0.5, 7, 0.0)],
)
def test_students_t_has_the_quantiles_of_its_tables(share, freedom, published):
    assert student_quantile(share, freedom) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 40])
def test_students_t_is_the_integral_of_its_density(freedom):
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    places = np.linspace(0, 3.7, 200_001)
    density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(places**2 / freedom))
    area = float(((density[1:] + density[:-1]) / 2).sum() * (places[1] - places[0]))
    assert student_cdf(3.7, freedom) == pytest.approx(0.5 + area, abs=1e-9)
    assert student_cdf(-3.7, freedom) == pytest.approx(0.5 - area, abs=1e-9)


def test_holm_corrects_as_in_his_paper():
    """By hand: .01·4, max(.02·3, .04), max(.03·2, .06), max(.04·1, .06)."""
    found = adjust_by_holm({"b": 0.02, "a": 0.01, "d": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})


def test_the_seeds_that_would_tell_do_so_four_times_in_five():
    drawn, told, n = np.random.default_rng(0), 0, count_seeds(0.8, 1.0)
    for _ in range(2000):
        told += MeanDifference.of_pairs((0.8 + drawn.standard_normal(n)).tolist()).p_value() < 0.05
    assert 0.76 < told / 2000 < 0.88, n
    assert count_seeds(0.0, 1.0) is None and count_seeds(1e-6, 1.0) is None
    for seeds in (3, 5, 10):  # fewer would not show a difference that so many just show
        assert count_seeds(find_smallest_effect(seeds, 0.025) + 1e-3, 1.0, 0.025) == seeds
        assert count_seeds(find_smallest_effect(seeds, 0.025) - 1e-2, 1.0, 0.025) == seeds + 1


def test_arms_without_a_difference_are_told_apart_in_one_experiment_of_twenty():
    """Four arms, three seeds: the chance of any verdict is 5 % at most, by Holm's correction."""
    drawn, wrong = np.random.default_rng(1), 0
    for _ in range(1000):
        base, *others = (3 + 0.1 * drawn.standard_normal((4, 3))).tolist()
        pairs = {str(at): [a - b for a, b in zip(arm, base, strict=True)] for at, arm in enumerate(others)}
        p_values = {arm: MeanDifference.of_pairs(each).p_value() for arm, each in pairs.items()}
        wrong += min(adjust_by_holm(p_values).values()) < LEVEL
    assert wrong / 1000 < 0.07


def test_a_difference_is_found_through_the_noise_that_a_seed_has_in_common():
    drawn = random.Random(0)
    common = {seed: drawn.gauss(3, 0.5) for seed in range(6)}
    losses = {"base": common, "same": {s: v + drawn.gauss(0, 0.02) for s, v in common.items()}}
    losses["lower"] = {s: v - 0.05 + drawn.gauss(0, 0.02) for s, v in common.items()}
    losses["higher"] = {s: v + 0.05 + drawn.gauss(0, 0.02) for s, v in common.items()}
    found = compare_arms(losses, "base")
    assert {name: each.verdict for name, each in found.items()} == {
        "same": "inconclusive",
        "lower": "better",
        "higher": "worse",
    }
    low, high = found["lower"].interval
    assert low < -0.05 < high < 0 and found["same"].needed > 6


def test_one_pair_tells_nothing():
    (found,) = compare_arms({"base": {0: 3.0, 1: 3.1}, "other": {1: 2.0}}, "base").values()
    assert found == Comparison(1, pytest.approx(-1.1), None, None, None, "inconclusive", None)


@pytest.mark.parametrize(("effect", "published"), [(1, 16), (1.5, 7), (2, 4), (3, 2)])
def test_the_seeds_of_arms_without_pairs_are_those_of_the_tables_of_power(effect, published):
    assert count_seeds_per_arm(0.01 * effect, 0.01) == published


def test_arms_that_share_no_seed_are_told_apart_by_chance_in_one_of_twenty():
    """Of unequal sizes and deviations, where pooled deviations would tell the small, noisy arm apart far too often."""
    drawn, wrong, inside = np.random.default_rng(3), 0, 0
    for _ in range(800):
        noisy, quiet = 3 + 4 * drawn.standard_normal(4), 3 + drawn.standard_normal(12)
        losses = {"quiet": dict(enumerate(quiet.tolist())), "noisy": dict(enumerate(noisy.tolist(), start=100))}
        found = compare_arms(losses, "quiet")["noisy"]
        wrong += found.p < 0.05
        inside += found.interval[0] < 0 < found.interval[1]
        assert not found.paired and found.n == 4
    assert 0.03 < wrong / 800 < 0.08 and wrong + inside == 800


def test_the_pareto_front_keeps_what_nothing_cheaper_beats():
    """`slow` is better than `base` by far and costs more, `bad` is worse and costs as much as `base`, `tie` is as good
    and costs more."""
    drawn = np.random.default_rng(4)
    middle = {"base": 3.0, "slow": 2.5, "bad": 3.4, "tie": 3.0}
    losses = {arm: dict(enumerate((at + 0.01 * drawn.standard_normal(5)).tolist())) for arm, at in middle.items()}
    costs = {"base": 100.0, "slow": 150.0, "bad": 100.5, "tie": 120.0}
    on, beaten = "on the front", "beaten"
    assert find_front(losses, costs, 0.01) == {"base": on, "slow": on, "bad": beaten, "tie": "undecided"}
    dear = find_front(losses, {**costs, "slow": 100.9}, 0.01)
    assert dear == {"base": beaten, "slow": on, "bad": beaten, "tie": beaten}
    single = {arm: {0: middle[arm]} for arm in middle}
    assert set(find_front(single, costs, 0.01).values()) == {"undecided"}


def test_an_arm_as_good_as_cheaper_ones_is_rarely_called_beaten_or_on_the_front() -> None:
    assert count(400, 6, partial(places_falsely, seeds=5)) <= 0.045


# ---------------------------------------------------------------- intervals of the corrected test


def test_an_interval_leaves_out_zero_just_where_holm_tells_a_difference() -> None:
    drawn = np.random.default_rng(8)
    for _ in range(60):
        losses = {"base": dict(enumerate(drawn.standard_normal(5)))}
        losses |= {str(at): dict(enumerate(at * 0.6 + drawn.standard_normal(5))) for at in range(4)}
        for each in compare_arms(losses, "base").values():
            low, high = each.interval
            assert (each.verdict == "inconclusive") == (low <= 0 <= high)


def test_the_levels_of_holm_are_those_of_his_steps() -> None:
    found = find_levels({"a": 0.001, "b": 0.02, "c": 0.04, "d": 0.012}, 0.05)
    assert found == pytest.approx({"a": 0.05 / 4, "d": 0.05 / 3, "b": 0.05 / 2, "c": 0.05})
    stopped = find_levels({"a": 0.001, "b": 0.03, "c": 0.04}, 0.05)
    assert stopped == pytest.approx({"a": 0.05 / 3, "b": 0.05 / 2, "c": 0.05 / 2})


# ---------------------------------------------------------------- equivalence


def test_arms_nearer_than_the_margin_are_equivalent_and_without_one_inconclusive() -> None:
    drawn = np.random.default_rng(9)
    losses = {arm: dict(enumerate((2 + 0.002 * drawn.standard_normal(6)).tolist())) for arm in ("base", "same")}
    assert compare_arms(losses, "base")["same"].verdict == "inconclusive"
    found = compare_arms(losses, "base", margin=0.02)["same"]
    assert found.verdict == "equivalent" and found.equivalence < 0.05
    assert compare_arms(losses, "base", margin=0.0005)["same"].verdict == "inconclusive"


def test_a_difference_that_is_told_and_within_the_margin_is_no_reason_to_prefer_an_arm() -> None:
    drawn = np.random.default_rng(10)
    losses = {"base": dict(enumerate((2 + 0.001 * drawn.standard_normal(8)).tolist()))}
    losses["lower"] = {seed: value - 0.01 for seed, value in losses["base"].items()}
    losses["lower"][0] += 0.001
    assert compare_arms(losses, "base")["lower"].verdict == "better"
    assert compare_arms(losses, "base", margin=0.05)["lower"].verdict == "equivalent"


def test_an_arm_that_is_worse_by_the_margin_is_called_equivalent_in_one_experiment_of_twenty() -> None:
    assert count(500, 11, partial(is_falsely_equivalent, seeds=6, margin=2 * SIGMA)) <= 0.075


# ---------------------------------------------------------------- divergence


def test_a_change_that_saves_runs_is_better_though_the_finished_ones_are_alike() -> None:
    base = {0: 2.05, 1: 2.06, 2: math.inf, 3: math.nan, 4: math.inf, 5: math.inf}
    saved = {0: 2.00, 1: 2.01, 2: 2.02, 3: 2.03, 4: 2.04, 5: 2.045}
    found = compare_arms({"base": base, "saved": saved}, "base", margin=1.0)["saved"]
    assert (
        found.verdict == "better" and found.diverged == (0, 4) and found.divergence == pytest.approx(0.0606, abs=1e-4)
    )
    assert found.n == 6 and found.interval is None and found.difference == pytest.approx(-0.05)
    assert compare_arms({"base": saved, "lost": base}, "base")["lost"].verdict == "worse"


def test_an_arm_of_which_every_run_diverged_is_worse() -> None:
    losses = {"base": dict(enumerate([2.0, 2.1, 2.2, 2.3])), "lost": dict.fromkeys(range(4), math.nan)}
    found = compare_arms(losses, "base")["lost"]
    assert found.verdict == "worse" and found.difference is None and found.p == pytest.approx(2 / math.comb(8, 4))


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_arms_that_diverge_alike_are_told_apart_in_one_experiment_of_twenty(share: float) -> None:
    assert count(500, 12, partial(diverges_by_chance, seeds=5, share=share)) <= 0.075


# ---------------------------------------------------------------- second readings


def test_pooling_over_arms_is_the_analysis_of_variance_of_arms_and_seeds() -> None:
    """Two arms: the paired test itself. Three: F of the contrast, worked by hand with numpy's least squares."""
    drawn = np.random.default_rng(13)
    table = drawn.standard_normal((3, 4)) + drawn.standard_normal(4)
    losses = {name: dict(enumerate(row.tolist())) for name, row in zip("abc", table, strict=True)}
    arms, seeds = np.repeat(np.eye(3), 4, 0), np.tile(np.eye(4), (3, 1))
    design = np.hstack([arms, seeds[:, 1:]])
    fitted, residual, *_ = np.linalg.lstsq(design, table.ravel(), rcond=None)
    error = math.sqrt(float(residual[0]) / 6 * 2 / 4)
    p = 2 * student_cdf(-abs(float(fitted[1] - fitted[0])) / error, 6)
    assert compare_arms(losses, "a")["b"].pooled == pytest.approx(p)
    assert compare_arms({name: losses[name] for name in "ab"}, "a")["b"].pooled is None


def test_pairing_is_measured_by_what_it_takes_off_the_noise() -> None:
    drawn = np.random.default_rng(14)
    common, apart = drawn.standard_normal(200), 0.1 * drawn.standard_normal((2, 200))
    losses = {str(at): dict(enumerate((common + own).tolist())) for at, own in enumerate(apart)}
    assert compare_arms(losses, "0")["1"].pairing == pytest.approx(0.1, abs=0.02)
