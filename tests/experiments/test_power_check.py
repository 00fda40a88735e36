"""What a plan says of its design: the windows that it tells apart, and the effects that it cannot see."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.simulations import SIGMA, count, judge_windows, read_kept
from zoo.analysis.verdict.power import LEVEL
from zoo.analysis.verdict.rate_optimum import TOLERANCE
from zoo.experiments import power_check
from zoo.experiments.experiment import Experiment
from zoo.experiments.judging import Ran, judge
from zoo.experiments.looking import list_notes
from zoo.experiments.noise_atlas import find_noise, find_run_noise
from zoo.experiments.power_check import LOSS, TYPICAL, describe_design, find_wider_window, list_blind
from zoo.experiments.recipe_tables import make_outcome_tables

KEPT = "that of stored verdicts on models of about this size"


def make_experiment(**stated: Any) -> Experiment:
    expected = {"arm": "normed", "against": "plain", "verdict": "better", **stated.pop("expect", {})}
    return Experiment(arms={"plain": [], "normed": ["optim=muon"]}, tune=True, expect=[expected], seeds=5, **stated)


def foresee(
    experiment: Experiment, sigma: float | None, seeds: int = 5, params: float = 217_728, proxy: float | None = None
) -> tuple[list[str], list[str]]:
    arms = {name: [params] for name in experiment.arms}
    outlook: Any = SimpleNamespace(
        sigma=sigma,
        seeds=seeds,
        comparisons=1,
        arms=arms,
        predict=lambda size: {"params": size},
        proxies=[proxy] if proxy else [],
    )
    return describe_design(experiment, outlook), list_blind(experiment, outlook)


def test_the_window_that_a_plan_promises_is_found_in_four_experiments_of_five() -> None:
    loss = 2.0  # of judge_windows
    wide, bend = find_wider_window(SIGMA / loss * math.sqrt(2), 2, 5, LEVEL), loss * TOLERANCE * (2 / TYPICAL) ** 2
    assert wide is not None and 1.5 * TYPICAL < wide < 2.2 * TYPICAL
    found = partial(judge_windows, seeds=5, bend=bend, sigma=SIGMA, times=wide / TYPICAL)
    assert 0.74 <= count(300, 5, found) <= 0.92
    assert find_wider_window(10 * SIGMA / loss, 2, 5, LEVEL) is None


def test_a_window_is_planned_at_the_loss_of_kept_verdicts_of_its_size_and_else_at_one_said_to_be_assumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power_check, "find_wider_window", lambda share, *_: 100 * share)
    wider = make_experiment(expect={"metric": "lr window", "effect": 0.1})

    def tell(sigma: float, params: float, proxy: float | None = None) -> tuple[float, float, str]:
        design, _ = foresee(wider, sigma, params=params, proxy=proxy)
        (line,) = (each for each in design if each.startswith("lr window"))
        wide, share, loss, source = re.findall(r"one of (\S+) or more .* σ is (\S+) % of a loss of (.*), (.*)", line)[0]
        assert float(wide) == pytest.approx(float(share), abs=0.06)
        return float(wide) / 100, float(loss), source

    kept, shares = find_noise("val_loss", 2e5), [deviation / mean for _, deviation, mean in list_near(2e5)]
    assert kept is not None
    share, loss, source = tell(kept.sigma, 2e5)
    assert share == pytest.approx(np.median(shares), abs=1e-4) and source == KEPT
    assert loss == pytest.approx(kept.sigma / np.median(shares), rel=0.01) and 1.7 < loss < 2.5
    unknown = "as no verdict on a model of about this size is stored"
    assert tell(0.02, 7e9) == (pytest.approx(0.02 / LOSS), LOSS, unknown)
    noisy = math.sqrt(2) * find_run_noise(2e5).sigma / loss
    assert tell(0.02, 7e9, proxy=2e5) == (pytest.approx(noisy, abs=1e-3), loss, source), "where rates are searched"


def test_a_plan_says_which_windows_it_tells_apart_and_which_effect_on_one_it_does_not() -> None:
    wider = make_experiment(expect={"metric": "lr window", "effect": 0.1})
    design, (blind,) = foresee(wider, 0.017)
    (told,) = (line for line in design if line.startswith("lr window"))
    wide = float(re.findall(r"one of (\S+) or more", told)[0])
    assert f"the published effect is +0.1 decades, and this design detects {wide - TYPICAL:.2g} or more" in blind
    assert foresee(make_experiment(expect={"metric": "lr window", "effect": 2.0}), 0.017)[1] == []
    noisy, (blind,) = foresee(wider, 0.5)
    assert "and this design detects none" in blind
    assert any("of stored verdicts, is told from none of up to 2.8, the widest tried" in line for line in noisy)
    assert not any("lr window" in line for line in foresee(make_experiment(), 0.017)[0])


@pytest.mark.parametrize("sigma", [None, 0.001])
def test_a_margin_that_includes_the_effect_of_the_source_is_named_by_the_plan_and_with_the_verdict(sigma) -> None:
    wide, own, narrow = (
        make_experiment(margin=0.05, expect={"effect": -0.04, **stated})
        for stated in ({}, {"margin": 0.01}, {"effect": -0.06})
    )
    (line,) = foresee(wide, sigma)[1]
    assert line.startswith("normed − plain: the published effect of −0.04 lies within the margin ±0.05: ")
    assert foresee(own, sigma)[1] == foresee(narrow, sigma)[1] == []
    ran = Ran({"val_loss": {arm: {0: 2.0, 1: 2.01} for arm in wide.arms}}, {arm: {} for arm in wide.arms}, 1.0, "here")
    outcome = judge("wide", wide, ran, False)
    assert line in make_outcome_tables("wide", wide, outcome) and line in list_notes(outcome, wide)


def list_near(params: float) -> Iterator[tuple[float, float, float]]:
    """The parameters of each kept arm of about this size, its deviation from the baseline, and its mean loss."""
    for (_, first), *others in read_kept():
        for size, own in others:
            if params / 5 <= size <= params * 5:
                yield size, float(np.std(np.subtract(own, first), ddof=1)), float(np.mean(own))


@pytest.mark.parametrize("params", [217_728, 2_500_000])
def test_the_noise_of_a_plan_is_the_median_of_kept_verdicts_on_models_of_its_size(params: int) -> None:
    sizes, deviations, _ = zip(*list_near(params), strict=True)
    found = find_noise("val_loss", params)
    assert found is not None and found.sigma == pytest.approx(np.median(deviations)) and len(deviations) > 3
    assert (found.arms, found.smallest, found.largest) == (len(deviations), min(sizes), max(sizes))
    assert f"the median over {len(deviations)} arms of stored verdicts, each against its baseline," in found.describe()


def test_a_size_of_which_no_verdict_is_kept_has_no_noise() -> None:
    assert find_noise("val_loss", 7e9) is None and find_noise("loss of another kind", 2e5) is None
