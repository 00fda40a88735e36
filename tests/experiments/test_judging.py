"""Verdicts recomputed: what kept files say, and two arms at searched rates, by the densities integrated anew."""

import functools
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from zoo.analysis.verdict.score_noise import find_level_noise
from zoo.experiments.experiment import Expectation, Experiment
from zoo.experiments.judging import ExperimentOutcome, Ran, weigh
from zoo.experiments.judging import judge as judge_all
from zoo.experiments.looking import list_notes
from zoo.experiments.probe_noise import find_least_noise
from zoo.experiments.recipe_tables import OPEN, count_held, list_cells, list_unmatched, make_outcome_tables
from zoo.gallery.charts import ACROSS, EDGE, draw_effects
from zoo.paths import recipes_dir
from zoo.probes.all_probes import make_probe
from zoo.report.forest_plot import DrawnEffect, find_limit, make_forest

DECADES = np.arange(-1.0, 1.1, 0.25)


STEPS = np.sinh(np.linspace(0, 12, 200_000))  # from 0 to 81,000, fine where densities are high


@functools.cache
def tabulate(freedom):
    """The two-sided tail of Student's t beyond each of STEPS, by the trapezoidal rule; of the normal for infinity."""
    if math.isinf(freedom):
        return np.array([math.erfc(each / math.sqrt(2)) for each in STEPS])
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(log - (freedom + 1) / 2 * np.log1p(STEPS**2 / freedom))
    areas = np.diff(STEPS) * (density[1:] + density[:-1]) / 2
    return 1 - 2 * np.concatenate(([0.0], np.cumsum(areas)))


def find_quantile(level, freedom):
    return np.interp(-level, -tabulate(freedom), STEPS)


def reach(level, each):
    """Half of the interval at a level: Student's of the runs' noise, or normal of what is counted if that is wider, and
    normal of the rates' errors, in quadrature."""
    of_noise = find_quantile(level, each.freedom) * each.noise if each.noise else 0.0
    of_noise = max(of_noise, find_quantile(level, math.inf) * each.counted)
    return math.hypot(of_noise, find_quantile(level, math.inf) * each.rate_error)


def recompute_p(each):
    """The level whose interval just reaches 0, by bisection; None where the test was of ranks."""
    if each.noise is None or each.value is None or not math.hypot(each.noise, each.counted, each.rate_error):
        return None
    low, high = 1e-9, 1.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if reach(middle, each) < abs(each.value) else (middle, high)
    return high


def check(findings, level):
    compared = [each for each in findings if each.p is not None]
    p_values = [recompute_p(each) for each in compared]
    if None in p_values:
        return 0
    highest = 0.0
    for rank, at in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, p_values[at] * (len(compared) - rank)))
        assert compared[at].p == pytest.approx(highest, abs=2e-5)
        assert (compared[at].found in ("better", "worse")) <= (highest < level)
    return len(compared)


def test_the_p_values_of_kept_verdicts_follow_from_their_errors_alone():
    kept = [ExperimentOutcome.read(file) for file in sorted((recipes_dir() / "verdicts").glob("*.json"))]
    assert sum(check(each.findings, each.level) for each in kept) > 30


def make_ran(seed, bends=(0.8, 0.8), gap=0.0, noise=0.01):
    """Two arms of five seeds, with the searches of their rates: losses by log rate are parabolas of these bends."""
    drawn, arms = np.random.default_rng(seed), ("plain", "normed")
    losses = {
        arm: dict(enumerate((2 + gap * at + noise * drawn.standard_normal(5)).tolist())) for at, arm in enumerate(arms)
    }
    searches = {}
    for arm, bend in zip(arms, bends, strict=True):
        tried = {f"{6e-3 * 10**at:.3g}": 2 + bend * at**2 + noise * drawn.standard_normal() for at in DECADES}
        searches[arm] = {"losses": tried, "best": 6e-3, "val_loss": 2.0, "extended": False, "edge": False}
    return Ran({"val_loss": losses}, {arm: {} for arm in arms}, 1.0, "somewhere", searches)


def judge(ran, *expected):
    experiment = Experiment(arms={"plain": [], "normed": ["optim=muon"]}, tune=True, margin=0.05)
    return weigh(ran, experiment, [Expectation(arm="normed", against="plain", **each) for each in expected])


WIDER = {"metric": "lr window", "verdict": "better"}
EXPECTED = {"arm": "normed", "against": "plain", **WIDER}


def test_arms_at_searched_rates_have_the_p_value_and_interval_of_both_errors():
    for seed in range(5):
        findings = judge(make_ran(seed, gap=0.02), {"verdict": "worse"}, WIDER)
        assert check(findings, 0.05) == 2
        loss, window = findings
        assert loss.rate_error > 0 and loss.noise > 0 and window.noise > 0 and window.rate_error > 0
        for each in findings:
            shown = [reach(2 * level if each.found == "equivalent" else level, each) for level in (0.05, 0.025)]
            half = (each.interval[1] - each.interval[0]) / 2
            assert min(abs(half - one) for one in shown) < 1e-6


def test_an_arm_of_a_flatter_parabola_has_the_wider_window_and_equal_ones_are_rarely_told_apart():
    (finding,) = judge(make_ran(0, bends=(3.0, 0.2), noise=0.001), WIDER)
    assert finding.found == "better" and finding.holds and finding.value > 0.2
    (finding,) = judge(make_ran(0, bends=(0.2, 3.0), noise=0.001), WIDER)
    assert finding.found == "worse" and not finding.holds
    told = [judge(make_ran(seed, noise=0.003), WIDER)[0].found != "inconclusive" for seed in range(60)]
    assert sum(told) <= 7


def test_windows_that_end_at_the_last_rate_tried_are_at_least_so_wide():
    (finding,) = judge(make_ran(0, bends=(0.8, 0.001), noise=0.001), WIDER)
    assert finding.found == "better" and finding.value == pytest.approx(2 - 2 * math.sqrt(0.1 / 0.8), abs=0.02)
    (finding,) = judge(make_ran(0, bends=(0.001, 0.001), noise=0.001), WIDER)
    assert finding.found == "inconclusive" and finding.p is None and finding.interval is None


@pytest.mark.parametrize(
    ("bends", "bound", "shown"),
    [
        ((0.8, 3.0), None, r"−0\.\d+ ± 0\.\d+"),
        ((0.8, 0.001), "at least", r"≥ \+1\.\d+ ± 0\.\d+"),
        ((0.001, 0.8), "at most", r"≤ −1\.\d+ ± 0\.\d+"),
        ((0.001, 0.001), "unknown", "unknown"),
    ],
)
def test_the_difference_of_a_window_that_is_open_is_marked_as_a_bound_wherever_it_stands(bends, bound, shown):
    experiment = Experiment(arms={"plain": [], "normed": ["optim=muon"]}, tune=True, expect=[EXPECTED])
    outcome = judge_all("open", experiment, make_ran(0, bends=bends, noise=0.001), False)
    (found,) = outcome.findings
    assert found.bound == asdict(outcome)["findings"][0]["bound"] == bound and (found.value is None) == (shown == bound)
    assert re.fullmatch(shown, list_cells(found, experiment)[3])
    assert (
        (OPEN in list_notes(outcome, experiment))
        == (OPEN in make_outcome_tables("", experiment, outcome))
        == bool(bound)
    )


def test_rates_of_a_proxy_are_said_to_be_assumed_with_what_the_shift_that_was_measured_costs():
    ran = make_ran(0, bends=(0.8, 0.5), noise=1e-4)
    experiment = Experiment(arms={"plain": [], "normed": ["optim=muon"]}, tune={"proxy": "model.d_model=64"})
    for width in (None, 64):
        for each in ran.searches.values():
            each["width"] = width
        outcome = judge_all("proxies", experiment, ran, False)
        tables = [each for each in make_outcome_tables("", experiment, outcome) if isinstance(each, str)]
        for lines in (list_notes(outcome, experiment), tables):
            said = [each for each in lines if "searched on 64 channels" in each]
            assert len(said) == (1 if width else 0)
            assert all(f"up to {0.8 * 0.17**2:.3f} here" in each for each in said), "the parabola at 0.17 decades"


def test_the_interval_of_a_bound_is_drawn_up_to_the_edge():
    bounded, closed = (DrawnEffect("windows", 1.2, (0.9, high), "better") for high in (math.inf, 1.5))
    line = make_forest([("decades", [bounded, closed])]).axes[0].lines[0]
    limit = find_limit([bounded, closed])
    assert list(line.get_xdata()) == [0.9, limit] and limit > 1.2
    (drawn, _) = re.findall(
        r'class="effect v-better" d="M([\d.]+) \d+H([\d.]+)"', draw_effects([bounded, closed], "windows")
    )
    assert float(drawn[1]) == ACROSS - EDGE


def test_an_arm_of_which_a_single_rate_has_a_loss_is_not_judged():
    """Its error cannot be known, and an error that was left out would make the arm the surest of all."""
    ran = make_ran(0, gap=0.5)
    losses = ran.searches["normed"]["losses"]
    losses.update(dict.fromkeys([rate for rate in losses if float(rate) != 6e-3]))
    (finding,) = judge(ran, {"verdict": "worse"})
    assert (finding.found, finding.p, finding.interval, finding.rate_error) == ("inconclusive", None, None, None)
    assert finding.value == pytest.approx(0.5, abs=0.05)


def test_a_window_beside_a_run_that_was_ended_early_is_not_compared():
    ran = make_ran(0, bends=(3.0, 0.2), noise=0.001)
    assert judge(ran, WIDER)[0].p is not None
    ran.searches["plain"]["open"] = True
    assert judge(ran, WIDER)[0].p is None, "the narrower window may be any width"


def judge_levels(reached, levels=(4, 8, 16, 32), margin=None):
    """The finding on two arms whose seeds reach these levels of a probe."""
    arms = ("plain", "normed")
    values = {"reach": {arm: dict(enumerate(map(float, own))) for arm, own in zip(arms, reached, strict=True)}}
    experiment = Experiment(
        arms={arm: [] for arm in arms}, probe={"name": "mqar"}, config=None, metric="reach", higher=True, margin=margin
    )
    expected = [Expectation(arm="normed", against="plain", verdict="better")]
    least = {
        metric: {arm: find_level_noise(levels, own.values()) for arm, own in values[metric].items()}
        for metric in values
    }
    return weigh(Ran(values, {arm: {} for arm in arms}, 1.0, "somewhere", least=least), experiment, expected)[0]


def test_levels_that_all_seeds_of_an_arm_share_are_known_to_the_gap_to_the_next_level_only():
    drawn = np.random.default_rng(0).uniform([[8], [16]], [[16], [32]], (2, 200_000))  # what is rounded down to 8, 16
    found = judge_levels(([8] * 3, [16] * 3))
    assert found.noise * math.sqrt(3) == pytest.approx((drawn[1] - drawn[0]).std(), rel=0.01)
    assert found.value == 8 and found.found == "inconclusive" and found.p > 0.1
    assert check([judge_levels(([4] * 5, [32] * 5))], 0.05) and judge_levels(([4] * 5, [32] * 5)).found == "better"
    assert judge_levels(([0] * 3, [4] * 3)).noise == pytest.approx(math.sqrt(32 / 12 / 3)), "no level: below the first"


@pytest.mark.parametrize("metric", ["accuracy at 128", "scaled at 128"])
def test_accuracies_that_all_seeds_share_are_known_to_the_noise_of_their_answers_only(metric):
    """Parity at 128 letters is scored on 128 rows, and a guess is right at a half."""
    probe, scale = make_probe("parity"), 2 if metric.startswith("scaled") else 1
    for wrong, found in ((0, "inconclusive"), (1, "inconclusive"), (16, "worse")):
        values = {"plain": dict.fromkeys(range(3), 1.0), "normed": dict.fromkeys(range(3), 1 - scale * wrong / 128)}
        experiment = Experiment(arms={arm: [] for arm in values}, probe="parity", metric=metric, higher=True)
        least = {metric: {arm: find_least_noise(probe, metric, own.values()) for arm, own in values.items()}}
        ran = Ran({metric: values}, {arm: {} for arm in values}, 1.0, "somewhere", least=least)
        expected = [Expectation(arm="normed", against="plain", verdict="worse")]
        (told,) = weigh(ran, experiment, expected)
        assert told.found == found and told.p > (0 if wrong == 16 else 0.1)
        shares = [(each + 0.5) / 129 for each in (0, wrong)]
        counted = scale * math.sqrt(sum(each * (1 - each) / 128 for each in shares) / 3)
        assert told.counted == pytest.approx(counted) and check([told], 0.05)


def test_levels_that_differ_more_than_their_gaps_have_the_spread_of_the_seeds():
    found = judge_levels(([4, 8, 4], [8, 32, 32]))
    assert found.noise == pytest.approx(np.std([4, 24, 28], ddof=1) / math.sqrt(3))


def test_expectations_of_costs_are_counted_apart_and_unmatched_costs_are_named():
    arms = {"plain": [], "wide": ["model.d_ff=512"], "same": ["optim=muon"]}
    expected = [
        {"arm": "wide", "against": "plain", "verdict": "better"},
        {"arm": "wide", "against": "plain", "cost": "params", "at_most": 2},
        {"arm": "same", "against": "plain", "verdict": "better"},
        {"arm": "wide", "against": "same", "cost": "flops", "at_most": 1.2},
    ]
    experiment = Experiment(arms=arms, expect=expected)
    losses = {arm: {seed: 2 - 0.5 * (arm == "wide") + 0.01 * seed for seed in range(5)} for arm in arms}
    losses["same"][0] += 0.003
    costs = {arm: {"params": 1000.0, "flops": 8e9, "cache_bytes": 64.0, "seconds": 3.0} for arm in arms}
    costs["wide"] |= {"params": 1350.0, "flops": 1e10, "seconds": 9.0}
    costs["same"] |= {"params": 1005.0}
    outcome = judge_all("wider", experiment, Ran({"val_loss": losses}, costs, 1.0, "here"), False)
    assert count_held(experiment, outcome) == "1 of 2, costs 1 of 2"
    (line,) = list_unmatched(outcome)
    assert line == "Not matched: wide ÷ plain: parameters ×1.35, training FLOPs ×1.25"
    assert line in make_outcome_tables("", experiment, outcome)
    bare = replace(outcome, findings=[each for each in outcome.findings if not each.cost])
    assert count_held(experiment, bare) == "1 of 2"
