"""Every field of every family's config.json is read as transformers reads it, is refused, or changes nothing there
either: no field is left out in silence. `config_field_trials.py` makes the values and compares."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from support import config_field_trials
from support.family_cases import ONE_EACH

CASES = [dataclasses.replace(case, attention="sdpa") if case.name == "falcon" else case for case in ONE_EACH]
"""The reference's eager attention adds Falcon's ALiBi twice."""

SAMPLE = 16
"""Trials of the quick tier: one field of each of so many families."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_another_value_of_a_field_is_read_refused_or_changes_nothing(case, tmp_path):
    found = [
        each for trial in config_field_trials.trials(case) for each in config_field_trials.verdicts(trial, tmp_path)
    ]
    tally = Counter(said.partition(":")[0] for _, said in found)
    crashes = sorted({name for trial, said in found if said.startswith("illegal") for name in trial.changes})
    print(f"{case.name}: {dict(tally)}; the reference itself refuses or crashes at {', '.join(crashes)}")
    assert {str(trial): said for trial, said in found if said.startswith("WRONG")} == {}
    assert tally["read"] >= 10  # the trials reach what a model is made of


@pytest.mark.parametrize("case", random.Random(5).sample(CASES, SAMPLE), ids=lambda case: case.name)
def test_a_drawn_field_is_read_refused_or_changes_nothing(case, tmp_path):
    drawn = random.Random(case.name).choice(
        [each for each in config_field_trials.trials(case) if len(each.changes) == 1]
    )
    found = config_field_trials.verdict(drawn, tmp_path)
    assert not found.startswith("WRONG"), f"{drawn}: {found}"


def test_fields_that_are_called_harmless_are_tried_together_and_apart_where_they_are_not(tmp_path):
    case = next(each for each in CASES if each.name == "bert")
    trial = config_field_trials.Trial(case, "brief", {"hidden_dropout_prob": 0.3, "layer_norm_eps": 0.1})
    found = {name: said for each, said in config_field_trials.verdicts(trial, tmp_path) for name in each.changes}
    assert found == {"hidden_dropout_prob": "harmless", "layer_norm_eps": "read"}
