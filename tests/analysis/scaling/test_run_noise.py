"""Points of one run share its noise: the bootstrap keeps them together, and prediction intervals hold further runs."""

import math
from functools import partial

import numpy as np
import pytest

from support.simulations import count
from zoo.analysis.scaling import FittedLaw, Law, LossPoints, fit_law
from zoo.analysis.scaling.optimal_speedup import LawArm, follow_speedup
from zoo.errors import ConfigError

LAW = Law(E=0.9, A=12.0, B=60.0, alpha=0.3, beta=0.32)
VARIANT = Law(E=0.9, A=11.0, B=57.0, alpha=0.3, beta=0.32)
SIZES = np.geomspace(16e3, 130e3, 5).tolist()
FLOPS = [6 * 10 * size**2 for size in SIZES]


def draw_ladder(law, draw, seeds, sizes=SIZES, of_run=0.012, of_point=0.004):
    """Ladders of three points a run, whose log losses have a noise of the run and one of the point."""
    rows, runs = [], []
    for size in sizes:
        for seed in range(seeds):
            shared = draw.normal(0, of_run)
            for multiple in (5, 10, 20):
                loss = law.loss(size, multiple * size) * math.exp(shared + draw.normal(0, of_point))
                rows.append((size, multiple * size, loss))
                runs.append(f"{size}-{seed}")
    return LossPoints.collect(rows, runs)


def test_points_of_one_run_are_resampled_together():
    """Each point twice in one run is a point of twice the weight: the resampled laws are the same."""
    points = draw_ladder(LAW, np.random.default_rng(0), 1)
    alone = LossPoints.collect(points.rows())
    twice = LossPoints.collect([*points.rows(), *points.rows()], [str(at) for at in range(len(points))] * 2)
    found, again = fit_law(alone, 20), fit_law(twice, 20)
    for own, other in zip(found.resampled, again.resampled, strict=True):
        assert own.loss(2e5, 2e6) == pytest.approx(other.loss(2e5, 2e6), rel=1e-5)
    apart = fit_law(LossPoints.collect(twice.rows()), 20)
    assert apart.resampled[0].loss(2e5, 2e6) != pytest.approx(found.resampled[0].loss(2e5, 2e6), rel=1e-5)


def test_runs_stay_with_their_points():
    points = draw_ladder(LAW, np.random.default_rng(0), 2)
    kept, largest = points.split_largest(2)
    assert set(largest.runs) == {f"{SIZES[-1]}-0", f"{SIZES[-1]}-1"}
    assert [kept.runs.count(run) for run in largest.runs] == [2, 2]
    assert FittedLaw.from_dict(fit_law(kept, 0).to_dict()).points == kept


def test_the_noise_of_a_run_is_found():
    noises = [fit_law(draw_ladder(LAW, np.random.default_rng(seed), 4), 0).estimate_noise() for seed in range(8)]
    assert {each.freedom for each in noises} == {4 * 5 - 3}
    assert np.mean([each.deviation for each in noises]) == pytest.approx(math.hypot(0.012, 0.004), rel=0.1)
    few = draw_ladder(LAW, np.random.default_rng(0), 1, SIZES[:3])
    assert fit_law(few, 5).estimate_noise() is None and fit_law(few, 5).predict_interval(2e5, 2e6) is None


def covers_held_out(draw, runs):
    """Whether the interval holds the loss of the largest size, fitted to the others: of one run, or the mean of 4."""
    points = draw_ladder(LAW, draw, 4)
    kept, largest = (points.select(lambda at, held=held: (points.params[at] == SIZES[-1]) == held) for held in (0, 1))
    low, high = fit_law(kept, 40).predict_interval(SIZES[-1], 20 * SIZES[-1], runs)
    losses = [loss for _, tokens, loss in largest.rows() if tokens == 20 * SIZES[-1]]
    return low <= np.mean(losses[:runs]) <= high


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 4])
def test_a_prediction_interval_holds_a_held_out_loss_in_nineteen_ladders_of_twenty(runs):
    assert count(200, 1, partial(covers_held_out, runs=runs)) == pytest.approx(0.95, abs=0.04)


# ---------------------------------------------------------------- compute-optimal speedups


def test_flops_for_a_loss_are_those_of_the_best_model_that_reaches_it():
    """The best is searched over a grid of sizes."""
    sizes = np.exp(np.linspace(math.log(1e2), math.log(1e9), 400_001))
    for flops in (1e12, 1e16):
        best = float(np.min(LAW.E + LAW.A * sizes**-LAW.alpha + LAW.B * (flops / 6 / sizes) ** -LAW.beta))
        assert LAW.flops_for(best) == pytest.approx(flops, rel=1e-6)
    assert LAW.flops_for(LAW.E) == math.inf
    with pytest.raises(ConfigError, match="have no best share"):
        Law(0.9, 12.0, 0.0, 0.3, 0.3).flops_for(2.0)


def scale(law, params, tokens):
    """The law of a variant whose parameters and tokens are worth so many times as much."""
    return Law(law.E, law.A * params**-law.alpha, law.B * tokens**-law.beta, law.alpha, law.beta)


def arm(law, flops=6.0):
    return LawArm(FittedLaw(law, LossPoints((), (), ()), 0.0), flops)


def test_parameters_worth_1_2_times_and_tokens_1_5_times_as_much_save_1_8_times_the_compute_at_all_scales():
    trend = follow_speedup(arm(LAW), arm(scale(LAW, 1.2, 1.5)), FLOPS)
    assert [each.factor for each in trend.speedups] == pytest.approx([1.8] * 5)
    assert trend.slope == pytest.approx(0, abs=1e-9) and trend.interval is None
    dearer = follow_speedup(arm(LAW), arm(scale(LAW, 1.2, 1.5), flops=9.0), FLOPS)
    assert dearer.speedups[2].factor == pytest.approx(1.8 * 6 / 9)


def test_a_gain_that_shrinks_has_a_falling_slope():
    """The variant's loss is better by tokens and worse by parameters, which count more at larger scales."""
    late = Law(LAW.E, LAW.A, LAW.B / 2, LAW.alpha, LAW.beta - 0.04)
    trend = follow_speedup(arm(LAW), arm(late), FLOPS)
    factors = [each.factor for each in trend.speedups]
    assert factors == sorted(factors, reverse=True) and trend.slope < 0
    ends = math.log(factors[-1] / factors[0]) / math.log(FLOPS[-1] / FLOPS[0])
    assert trend.slope == pytest.approx(ends, rel=0.05)


def test_a_speedup_rests_on_doubtful_optima_where_predictions_beyond_the_points_would_be_refused():
    fits = [LawArm(fit_law(draw_ladder(each, np.random.default_rng(0), 2, SIZES[:3]), 8)) for each in (LAW, VARIANT)]
    assert follow_speedup(*fits, FLOPS[:2]).doubt is None, "the optima have fewer tokens than the longest run"
    far = follow_speedup(*fits, [1e3 * FLOPS[0], 1e4 * FLOPS[0]])
    assert far.doubt is not None and "too wide to predict beyond the points" in far.doubt


def covers_trend(draw):
    """Whether the intervals hold the true speedup at the middle size, and the true slope."""
    fits = [fit_law(draw_ladder(each, draw, 4), 30) for each in (LAW, VARIANT)]
    trend = follow_speedup(*map(LawArm, fits), FLOPS)
    truth = follow_speedup(arm(LAW), arm(VARIANT), FLOPS)
    low, high = trend.speedups[2].interval
    return low <= truth.speedups[2].factor <= high and trend.interval[0] <= truth.slope <= trend.interval[1]


@pytest.mark.slow
def test_both_the_speedup_and_its_slope_are_held_by_their_intervals():
    """Together at least 90 % of 100 ladders, because each alone is 95 %."""
    assert count(100, 1, covers_trend) >= 0.86
