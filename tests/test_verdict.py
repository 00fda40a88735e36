"""Verdicts on arms: the statistics have their published values and error rates, and `zoo report` reads real runs."""

import json
import math
import random

import numpy as np
import pytest
from spread import BASE, SMALL, here  # noqa: F401  (a fixture)

from zoo.analysis import verdict
from zoo.cli import run


@pytest.mark.parametrize(
    ("share", "freedom", "published"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 4, 2.7764), (0.95, 9, 1.8331), (0.995, 30, 2.75), (0.5, 7, 0.0)],
)
def test_students_t_has_the_quantiles_of_its_tables(share, freedom, published):
    assert verdict.student_quantile(share, freedom) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 40])
def test_students_t_is_the_integral_of_its_density(freedom):
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    places = np.linspace(0, 3.7, 200_001)
    density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(places**2 / freedom))
    area = float(((density[1:] + density[:-1]) / 2).sum() * (places[1] - places[0]))
    assert verdict.student_cdf(3.7, freedom) == pytest.approx(0.5 + area, abs=1e-9)
    assert verdict.student_cdf(-3.7, freedom) == pytest.approx(0.5 - area, abs=1e-9)


def test_holm_corrects_as_in_his_paper():
    """By hand: .01·4, max(.02·3, .04), max(.03·2, .06), max(.04·1, .06)."""
    found = verdict.adjust_by_holm({"b": 0.02, "a": 0.01, "d": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})


def test_the_seeds_that_would_tell_do_so_four_times_in_five():
    drawn, told, n = np.random.default_rng(0), 0, verdict.count_seeds(0.8, 1.0)
    for _ in range(2000):
        told += verdict.find_chance((0.8 + drawn.standard_normal(n)).tolist()) < 0.05
    assert 0.76 < told / 2000 < 0.88, n
    assert verdict.count_seeds(0.0, 1.0) is None and verdict.count_seeds(1e-6, 1.0) is None


def test_arms_without_a_difference_are_told_apart_in_one_experiment_of_twenty():
    """Four arms, three seeds: the chance of any verdict is 5 % at most, by Holm's correction."""
    drawn, wrong = np.random.default_rng(1), 0
    for _ in range(1000):
        base, *others = (3 + 0.1 * drawn.standard_normal((4, 3))).tolist()
        pairs = {str(at): [a - b for a, b in zip(arm, base, strict=True)] for at, arm in enumerate(others)}
        chances = {arm: verdict.find_chance(each) for arm, each in pairs.items()}
        wrong += min(verdict.adjust_by_holm(chances).values()) < verdict.LEVEL
    assert wrong / 1000 < 0.07


def test_a_difference_is_found_through_the_noise_that_a_seed_has_in_common():
    drawn = random.Random(0)
    common = {seed: drawn.gauss(3, 0.5) for seed in range(6)}
    losses = {"base": common, "same": {s: v + drawn.gauss(0, 0.02) for s, v in common.items()}}
    losses["lower"] = {s: v - 0.05 + drawn.gauss(0, 0.02) for s, v in common.items()}
    losses["higher"] = {s: v + 0.05 + drawn.gauss(0, 0.02) for s, v in common.items()}
    found = verdict.compare_arms(losses, "base")
    assert {name: each.verdict for name, each in found.items()} == {
        "same": "not told apart",
        "lower": "better",
        "higher": "worse",
    }
    low, high = found["lower"].interval
    assert low < -0.05 < high < 0 and found["same"].needed > 6


def test_one_pair_tells_nothing():
    (found,) = verdict.compare_arms({"base": {0: 3.0, 1: 3.1}, "other": {1: 2.0}}, "base").values()
    assert found == verdict.Comparison(1, pytest.approx(-1.1), None, None, None, "not told apart", None)


# ---------------------------------------------------------------- real runs


@pytest.fixture
def sweep(here):  # noqa: F811
    own = [*BASE[:-1], *SMALL, "batch_size=8", "eval_every=null", "save_every=null", "steps=3", "sample=null"]
    asked = ["train", "-m", "model=llama-tiny", *own, "attention=gqa,mqa", "seed=0,1", "hydra.sweep.dir=sweeps/heads"]
    assert run(asked) == 0
    return here / "sweeps" / "heads"


def test_a_sweep_is_reported(sweep, capsys, refused):
    capsys.readouterr()
    assert run(["report", str(sweep), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "attention=gqa"
    base, other = found["arms"]
    results = [json.loads((sweep / str(job) / "result.json").read_text()) for job in range(4)]
    losses = [each["val_loss"] for each in results]
    assert list(base["val_loss"].values()) == losses[:2] and list(other["val_loss"].values()) == losses[2:]
    assert other["difference"] == pytest.approx(sum(losses[2:]) / 2 - sum(losses[:2]) / 2)
    assert other["costs"]["params"] == results[2]["params"] and other["unmatched"]["kv_bytes"] == 0.5
    assert run(["report", str(sweep), "--baseline", "attention=mqa", "--md"]) == 0
    said = capsys.readouterr().out
    assert "| attention=mqa | 2 |" in said and "baseline" in said and "KV bytes a token" in said
    assert refused("report", str(sweep), "--baseline", "attention=mla") == [
        "baseline: there is no arm 'attention=mla', found: attention=gqa, attention=mqa"
    ]
    assert "arms: there are 1, found all runs (two)" in refused("report", str(sweep / "0"), str(sweep / "1"))
    (line,) = refused("report", str(sweep), "--metric", "bleu")[:1]
    assert "has no bleu (--metric NAME names another)" in line
