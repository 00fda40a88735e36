"""Decision accuracy: comparisons at two sizes are found, and those that agree are counted."""

from dataclasses import replace

import numpy as np

from pages import findings_page
from zoo.experiments.decisions import SIZES, list_decisions
from zoo.experiments.experiment import Experiment
from zoo.experiments.judging import Ran, judge

ARMS = {"plain": [], "late": [], "early": []}
SHIFTS = {"small": {"plain": 0, "late": 0.1, "early": -0.2}, "large": {"plain": 0, "late": -0.2, "early": -0.2}}
"""Arm `late` gains with size: its sign turns."""


def run(name, params, shifts, **changed):
    """A judged experiment of three arms, in four seeds with little noise."""
    expect = [{"arm": arm, "against": "plain", "verdict": "any"} for arm in ("late", "early")]
    recipe = Experiment.model_validate({"arms": ARMS, "seeds": 4, "expect": expect} | changed)
    drawn = np.random.default_rng(0)
    values = {
        arm: {seed: 3 + shift + 0.01 * drawn.standard_normal() for seed in range(4)} for arm, shift in shifts.items()
    }
    costs = {arm: {"params": params} for arm in ARMS}
    return recipe, judge(name, recipe, Ran({recipe.metric: values}, costs, 1.0, "somewhere"), False)


def test_recipes_of_the_same_arms_at_four_times_the_size_are_compared_arm_by_arm():
    small, large = run("small", 1e6, SHIFTS["small"]), run("large", 4e6, SHIFTS["large"])
    kept = {"small": small, "large": large, "other": run("other", 4e6, SHIFTS["large"], metric="bits_per_byte")}
    made = {each.small.arm: each for each in list_decisions(kept)}
    assert {each.source for each in made.values()} == {"small, large"} and len(made) == 2
    assert [made["late"].small.found, made["late"].large.found] == ["worse", "better"]
    assert not made["late"].same_sign and not made["late"].same_verdict
    assert made["early"].same_sign and made["early"].same_verdict
    assert "The sign agrees in 1 of 2, the verdict in 1." in findings_page.write_decisions(kept)


def test_other_ratios_of_size_and_withdrawn_verdicts_do_not_count():
    small = run("small", 1e6, SHIFTS["small"])
    assert not list_decisions({"small": small, "large": run("large", 2e6, SHIFTS["large"])})
    assert not list_decisions({"small": small, "large": run("large", 4e6, SHIFTS["large"], withdrawn="It was wrong.")})


def test_a_ladder_has_both_sizes_itself():
    recipe, outcome = run("ladder", 4e6, SHIFTS["small"])
    found = [replace(each, metric=metric) for metric in SIZES for each in outcome.findings]
    made = list_decisions({"ladder": (recipe, replace(outcome, findings=found))})
    assert [(each.source, each.small.arm, each.large.metric) for each in made] == [
        ("ladder", arm, SIZES[1]) for arm in ("late", "early")
    ]
    assert all(each.same_verdict for each in made)
