"""Registrations: what a kept verdict says of them, and what is registered before the first training."""

import json
from dataclasses import replace

import pytest

from zoo.cli import run
from zoo.experiments.experiment import find_recipe
from zoo.experiments.judging import ExperimentOutcome
from zoo.experiments.looking import run_experiment
from zoo.experiments.registration import describe_registration, list_shared_runs, read_registered, register
from zoo.jobs.conducting import SweepObserver


def test_what_was_added_after_its_registration_is_said_with_a_kept_verdict(capsys):
    assert run(["recipes", "qk-norm", "short-convolution"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "before its first run; changed afterwards: 2026-11-30 17:12:50 expectations (added lr window, qk-norm" in said
    )
    assert "Not registered: " in said
    assert run(["recipes", "norms-inside-qk"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "recipes that came earlier have the same ones: before, seeds 0 to 4 (qk-gain, 2026-11-30 21:44:32)" in said


def make_registered(recipe, when, **losses):
    about = {"key": "", "form": "whole", "machine": "", "seconds": 0.0, "costs": {}, "findings": []}
    stated = {"when": f"2026-11-30T{when}:00", "hash": "", "parts": {}, "stated": {}, "changes": []}
    values = {"val_loss": {arm: {str(seed): loss for seed, loss in enumerate(own)} for arm, own in losses.items()}}
    return ExperimentOutcome(recipe=recipe, date="2026-11-30", values=values, registration=stated, **about)


def test_runs_that_an_earlier_recipe_has_too_are_said_to_have_been_known():
    first = make_registered("first", "10:00", plain=[2.0, 2.1, 2.2], lost=[None, 1.5])
    second = make_registered("second", "11:00", bare=[2.0, 2.1, 2.2, 2.3])
    third = make_registered("third", "12:00", base=[2.0, 2.1, 2.2, 2.3, 2.4], other=[None, 1.5], new=[2.1, 2.0])
    (line,) = list_shared_runs(third, [third, second, first])
    assert line.partition(": ")[2] == (
        "base, seeds 0 to 2 (first, 2026-11-30 10:00:00); base, seed 3 (second, 2026-11-30 11:00:00); "
        "other, seed 1 (first, 2026-11-30 10:00:00)"
    )
    assert list_shared_runs(first, [third, second, first]) == [], "nothing came before"
    unknown = replace(first, registration=None, recipe="unregistered", date="2026-11-27")
    assert list_shared_runs(unknown, [first, second]) == [] and "(unregistered, 2026-11-27)" in str(
        list_shared_runs(first, [unknown])
    )


@pytest.mark.parametrize("name", ["short-convolution", pytest.param("ladder", marks=pytest.mark.slow)])
def test_a_probe_and_a_ladder_are_registered_before_their_first_training(name, monkeypatch, tmp_path):
    def train(*_, **__):
        raise InterruptedError

    monkeypatch.setattr("zoo.experiments.probing.probe_recipe", train)
    monkeypatch.setattr("zoo.experiments.laddering.climb_recipe", train)
    _, recipe = find_recipe(name)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            run_experiment(name, recipe, tmp_path, True, SweepObserver())
    made = json.loads((tmp_path / "registration.json").read_text())
    found = read_registered(tmp_path)
    assert (found.arms, found.probe, found.ladder) == (recipe.arms, recipe.probe, recipe.ladder)
    assert not made["late"] and not made["changes"], "what is asked a second time is what was registered"
    assert register(recipe, tmp_path, {"another": "model"})["changes"][0]["of"].keys() == {"models"}


def test_a_registration_among_older_runs_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    assert "after its first run; unchanged" in describe_registration(register(find_recipe("glu")[1], tmp_path, {}))
