"""The noise that scores have even where all seeds agree, and how rarely equal accuracies are told apart."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from support.simulations import count, tells_equal_accuracies
from zoo.analysis.verdict.comparison import compare_arms
from zoo.analysis.verdict.difference import LossNoise
from zoo.analysis.verdict.score_noise import find_answer_noise


@pytest.mark.parametrize(("right", "answers"), [(1024, 1024), (0, 64), (500, 1024)])
def test_an_accuracy_has_the_spread_of_draws_from_what_its_answers_leave_possible(right: int, answers: int) -> None:
    drawn = np.random.default_rng(0)
    likely = drawn.beta(right + 0.5, answers - right + 0.5, 100_000).mean()  # by Jeffreys' prior
    spread = (drawn.binomial(answers, likely, 100_000) / answers).std()
    assert find_answer_noise([right / answers] * 3, answers) == (pytest.approx(spread, rel=0.02), answers)


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize(("answers", "share"), [(128, 0.5), (1024, 0.99)])
def test_equal_arms_of_which_answers_are_counted_are_told_apart_in_at_most_one_experiment_of_twenty(
    seeds: int, answers: int, share: float, seeded: bool
) -> None:
    tells = partial(tells_equal_accuracies, seeds=seeds, answers=answers, share=share, seeded=seeded)
    assert count(400, 1, tells) <= 0.065


def test_an_interval_is_the_wider_one_of_the_seeds_and_of_the_answers() -> None:
    losses = {"a": {0: 0.5, 1: 0.5, 2: 0.5}, "b": {0: 0.60, 1: 0.62, 2: 0.64}}
    for sigma in (0.001, 0.03, 0.1):
        found = compare_arms(losses, "a", least=dict.fromkeys("ab", LossNoise(sigma / 2**0.5, 1024)))["b"]
        of_seeds, of_answers = 4.302653 * 0.02 / 3**0.5, 1.959964 * sigma / 3**0.5  # 97.5 % quantiles of tables
        assert found.interval is not None
        assert found.interval[1] - 0.12 == pytest.approx(max(of_seeds, of_answers), rel=1e-5)
        assert (found.p < 0.05) == (found.interval[0] > 0)


def test_arms_without_a_common_seed_have_that_noise_too() -> None:
    least = dict.fromkeys("ab", find_answer_noise([1.0], 1024))
    losses = {"a": {0: 1.0, 1: 1.0, 2: 1.0}, "b": {3: 1 - 1 / 1024, 4: 1 - 1 / 1024, 5: 1 - 1 / 1024}}
    assert compare_arms(losses, "a")["b"].p == 0
    found = compare_arms(losses, "a", least=least)["b"]
    assert found.verdict == "inconclusive" and found.counted == pytest.approx(least["a"].sigma * (2 / 3) ** 0.5)
