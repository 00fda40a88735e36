"""What a plan says that a probe can detect: the noise of kept runs, computed anew from their files, and draws."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from zoo.analysis.verdict.student import student_quantile
from zoo.errors import ConfigError
from zoo.experiments.experiment import Experiment
from zoo.experiments.probe_noise import check_metrics
from zoo.experiments.probe_power import foresee_probe, list_blind_probe, list_power_notes, make_power_table
from zoo.paths import recipes_dir
from zoo.probes.all_probes import make_probe


def plan(metric: str, effect: float = 0.1, **stated: Any) -> Experiment:
    """Two verdicts against Mamba-2: of differential attention, and of an attention of which no run is kept."""
    arms = {
        "mamba2": "position=none attention=mamba2",
        "differential": "attention=differential",
        "capped": "softcap=30",
    }
    expected = [
        {"arm": arm, "against": "mamba2", "verdict": "better", "effect": effect} for arm in ("differential", "capped")
    ]
    return Experiment.model_validate(
        {"arms": arms, "metric": metric, "higher": True, "probe": "mqar", "seeds": 5, "expect": expected} | stated
    )


def read_accuracies() -> dict[str, list[float]]:
    """The accuracies at 16 keys of the kept cards, by their overrides, and of the arms of recall-state."""
    cards = (json.loads(file.read_text()) for file in (recipes_dir() / "cards").glob("*.json"))
    found = {
        each["model"] + " ".join(each["overrides"]): [seed["levels"]["16"]["accuracy"] for seed in each["seeds"]]
        for card in cards
        for each in card
        if each["probe"] == "mqar"
    }
    kept = json.loads((recipes_dir() / "verdicts" / "recall-state.json").read_text())["values"]["accuracy at 16"]
    return found | {arm: list(own.values()) for arm, own in kept.items()}


def find_variance(values: list[float], answers: int = 16 * 1024) -> float:
    likely = (np.mean(values) * answers + 0.5) / (answers + 1)
    return max(float(np.var(values, ddof=1)), likely * (1 - likely) / answers)


def test_the_noise_is_that_of_a_models_own_runs_or_pooled_over_those_of_all_kept_models() -> None:
    kept = read_accuracies()
    own, other = foresee_probe(plan("accuracy at 16"))
    mamba2, differential = (
        find_variance(kept[f"llama-tiny{each}"])
        for each in ("attention=mamba2 position=none", "attention=differential")
    )
    assert own.sigma == pytest.approx(math.sqrt(mamba2 + differential)) and own.source == "stored runs of both"
    pooled = float(np.mean([find_variance(values) for values in kept.values()]))
    assert other.sigma == pytest.approx(math.sqrt(mamba2 + pooled)) and other.source == "other models, for capped"
    *_, note = list_power_notes(plan("accuracy at 16"), [own, other])
    assert "of mqar, of gqa, sliding, mamba2," in note and "window of 8 (recall-state)" in note
    elsewhere = plan("accuracy at 16", probe={"name": "mqar", "settings": {"vocab": 48}})
    assert " at other settings, of gqa," in list_power_notes(elsewhere, foresee_probe(elsewhere))[-1]


def test_levels_that_all_kept_seeds_reach_have_the_noise_of_rounding() -> None:
    alike = plan("reach", arms={"mamba2": "attention=differential", "differential": "model=smollm3-3b", "capped": ""})
    first, second = foresee_probe(
        alike
    )  # of all three architectures all seeds reach 16 keys, and 8 is the level before
    assert first.sigma == second.sigma == pytest.approx(8 * math.sqrt(2 / 12))
    assert make_power_table(alike, [first]).rows[0][2] == f"{first.smallest:.2g} keys or more"


def test_the_difference_that_is_promised_is_found_in_four_experiments_of_five() -> None:
    promised = foresee_probe(plan("accuracy at 16", seeds=5))[1]
    assert promised.smallest is not None and promised.sigma is not None
    pairs = np.random.default_rng(0).normal(promised.smallest, promised.sigma, (20_000, 5))
    t = pairs.mean(1) / pairs.std(1, ddof=1) * math.sqrt(5)
    assert (t > student_quantile(1 - 0.05 / 2 / 2, 4)).mean() == pytest.approx(0.8, abs=0.01), "of two comparisons"


def test_an_effect_that_could_not_be_seen_is_said_before_the_run() -> None:
    few, many = (plan("accuracy at 16", 0.5, seeds=seeds) for seeds in (3, 40))
    (line, _), none = (list_blind_probe(each, foresee_probe(each)) for each in (few, many))
    assert none == [] and line.startswith("differential against mamba2: better: the published effect is +0.5, and this")
    assert line.endswith("design detects none (14 seeds would detect it)")
    assert {row[2] for row in make_power_table(few, foresee_probe(few)).rows} == {"none"}, (
        "above 1, the largest there is"
    )


def test_a_probe_without_kept_runs_takes_the_noise_that_is_stated() -> None:
    unknown, stated = (plan("accuracy at 4", probe="mano", **more) for more in ({}, {"sigma": 0.05}))
    assert {(each.sigma, each.source) for each in foresee_probe(unknown)} == {(None, "no run is stored (--sigma)")}
    assert make_power_table(unknown, foresee_probe(unknown)).rows[0][1:3] == ["unknown", ""]
    assert [each.sigma for each in foresee_probe(stated)] == [0.05, 0.05] and len(list_blind_probe(stated, [])) == 0
    with pytest.raises(ConfigError, match="mqar has no 'val_loss'"):
        check_metrics(make_probe("mqar"), plan("val_loss").list_metrics())
