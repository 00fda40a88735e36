"""The best learning rate of a search, its error, and the window of good rates."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from support.simulations import SIGMA, Curve, TunedDesign, bend_cliff, bend_parabola, count, judge_windows
from zoo.analysis.verdict.rate_optimum import TOLERANCE, RateWindow, find_good_window, fit_optimum

DECADES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def test_the_minimum_of_a_parabola_is_found_between_the_rates_tried() -> None:
    found = fit_optimum({at: 2 + 0.2 * (at - 0.13) ** 2 for at in DECADES}, noise=0.0)
    assert found.fitted and found.at == pytest.approx(0.13) and found.curvature == pytest.approx(0.2)
    assert found.error == found.excess == 0


def test_a_loss_that_rises_at_once_above_a_good_rate_hardly_moves_the_minimum() -> None:
    """With every loss as it is the minimum of the nearest three would be at up to -0.12."""
    smooth = {at / 4: 2 + 0.5 * (at / 4) ** 2 for at in range(-4, 2)}
    for cliff in (0.3, 0.5, 5.0, math.inf):
        assert abs(fit_optimum({**smooth, 0.25: 2 + cliff, 0.5: 2 + cliff}, noise=0.01).at) <= 0.1


def test_the_error_of_the_optimum_is_its_deviation_over_noisy_searches() -> None:
    drawn, noise, tried = np.random.default_rng(0), 0.01, (*DECADES, -0.25, 0.25)
    fits = [
        fit_optimum({at: 2 + 0.5 * (at - 0.07) ** 2 + noise * drawn.standard_normal() for at in tried}, noise)
        for _ in range(800)
    ]
    places = np.array([each.at for each in fits])
    assert np.mean(places) == pytest.approx(0.07, abs=0.01)
    assert np.mean([each.error for each in fits]) == pytest.approx(places.std(), rel=0.1)
    lost = 0.5 * (places - 0.07) ** 2  # what an arm loses at the rate that was chosen
    assert np.mean([each.excess for each in fits]) == pytest.approx(math.sqrt(np.mean(lost**2)), rel=0.25)


def test_a_best_rate_at_the_edge_stands_with_the_distance_to_the_next() -> None:
    found = fit_optimum({0.0: 3.0, 0.5: 2.5, 1.0: 2.2, 1.5: math.inf}, noise=0.01)
    assert not found.fitted and found.at == 1.0 and found.error == pytest.approx(0.5 / math.sqrt(3))
    assert found.curvature == pytest.approx(0.3 / 0.25)


def test_rates_written_with_three_digits_have_the_optimum_of_the_places_that_they_were_chosen_by() -> None:
    """Around a best rate off the middle two others are equally far, and only one of them is among the nearest five."""
    losses = {-1.0: 2.509, -0.5: 2.194, -0.25: 2.089, 0.0: 2.029, 0.25: 2.023, 0.5: 2.463, 1.0: 2.581}
    written = {math.log10(float(f"{0.006 * 10**at:.3g}")): loss for at, loss in losses.items()}
    shuffled = dict(sorted(losses.items(), key=lambda each: abs(each[0])))
    chosen, judged = fit_optimum(shuffled, noise=0.024), fit_optimum(written, noise=0.024)
    assert judged.at - math.log10(0.006) == pytest.approx(chosen.at, abs=0.005)
    assert judged.excess == pytest.approx(chosen.excess, rel=0.05)


def test_the_window_of_a_parabola_is_exact_though_few_rates_are_tried() -> None:
    found = find_good_window({at: 2 + 0.5 * at**2 for at in DECADES})
    assert found.width == pytest.approx(2 * math.sqrt(2 * TOLERANCE / 0.5)) and not found.open
    assert found.coarseness == pytest.approx(math.sqrt(2) * abs(0.2**0.5 - 0.4)), "0.4: interpolated between 0 and 0.5"
    assert find_good_window({0.0: 2.0, 0.5: 2.01}).open
    assert find_good_window({0.0: 3.0, 0.5: 2.0, 1.0: math.inf}).high == 0.5


def test_the_error_of_a_window_is_its_deviation_over_noisy_searches() -> None:
    drawn, noise = np.random.default_rng(1), 0.01
    true = {at: 2 + 0.3 * at**2 for at in DECADES}
    widths = [
        find_good_window({at: v + noise * drawn.standard_normal() for at, v in true.items()}).width for _ in range(600)
    ]
    assert find_good_window(true, noise).noise == pytest.approx(np.std(widths), rel=0.1)


@pytest.mark.parametrize("curve", [bend_parabola, bend_cliff])
def test_windows_of_equal_arms_are_rarely_told_apart_and_one_twice_as_wide_nearly_always(curve: Curve) -> None:
    equal, wider = (partial(judge_windows, seeds=5, bend=0.5, sigma=SIGMA, curve=curve, times=each) for each in (1, 2))
    assert count(300, 3, equal) <= 0.08 and count(60, 3, wider) >= 0.8


def test_a_window_that_is_open_is_compared_where_it_is_the_wider_one() -> None:
    def find(bend: float) -> RateWindow:
        return find_good_window({at: 2 + bend * at**2 for at in DECADES}, noise=0.005)

    narrow, open_, wide = find(2.0), find(0.01), find(0.11)
    assert open_.open and not wide.open and narrow.subtract_from(open_, 8).p_value() < 0.01
    assert not open_.subtract_from(replace(wide, low=-2.0), 8).known, "its width may be anything above 2 decades"
    assert not narrow.subtract_from(wide, 0).known, "seeds without a spread"


FLAT = TunedDesign(10, sigma=0.05, bends=(0.1, 0.1))
"""Searches whose noise hides the best rate, so that its error decides."""


@pytest.mark.parametrize("design", [TunedDesign(3), TunedDesign(10, curve=bend_cliff), FLAT])
def test_equal_arms_at_searched_rates_are_told_apart_in_one_experiment_of_twenty(design: TunedDesign) -> None:
    assert count(400, 4, design.tells) <= 0.085


def test_what_a_rates_error_costs_is_needed_in_the_interval_and_enough() -> None:
    assert count(400, 1, FLAT.covers) >= 0.925
    assert count(400, 1, replace(FLAT, how="without errors").covers) <= 0.91
    assert count(300, 7, TunedDesign(10, how="2026").tells) >= 0.12
