"""Verdicts on arms: the statistics have their published values and error rates, and `zoo report` reads real runs."""

import csv
import io
import json
import math
import random
import re

import numpy as np
import pytest

from support.command_lines import list_job_folders
from support.parallel_runs import BASE, SMALL, here  # noqa: F401  (a fixture)
from zoo.analysis import speedup, verdict
from zoo.analysis.speedup import PowerLaw, find_speedup
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
        told += verdict.MeanDifference.of_pairs((0.8 + drawn.standard_normal(n)).tolist()).p_value() < 0.05
    assert 0.76 < told / 2000 < 0.88, n
    assert verdict.count_seeds(0.0, 1.0) is None and verdict.count_seeds(1e-6, 1.0) is None


def test_arms_without_a_difference_are_told_apart_in_one_experiment_of_twenty():
    """Four arms, three seeds: the chance of any verdict is 5 % at most, by Holm's correction."""
    drawn, wrong = np.random.default_rng(1), 0
    for _ in range(1000):
        base, *others = (3 + 0.1 * drawn.standard_normal((4, 3))).tolist()
        pairs = {str(at): [a - b for a, b in zip(arm, base, strict=True)] for at, arm in enumerate(others)}
        p_values = {arm: verdict.MeanDifference.of_pairs(each).p_value() for arm, each in pairs.items()}
        wrong += min(verdict.adjust_by_holm(p_values).values()) < verdict.LEVEL
    assert wrong / 1000 < 0.07


def test_a_difference_is_found_through_the_noise_that_a_seed_has_in_common():
    drawn = random.Random(0)
    common = {seed: drawn.gauss(3, 0.5) for seed in range(6)}
    losses = {"base": common, "same": {s: v + drawn.gauss(0, 0.02) for s, v in common.items()}}
    losses["lower"] = {s: v - 0.05 + drawn.gauss(0, 0.02) for s, v in common.items()}
    losses["higher"] = {s: v + 0.05 + drawn.gauss(0, 0.02) for s, v in common.items()}
    found = verdict.compare_arms(losses, "base")
    assert {name: each.verdict for name, each in found.items()} == {
        "same": "no significant difference",
        "lower": "better",
        "higher": "worse",
    }
    low, high = found["lower"].interval
    assert low < -0.05 < high < 0 and found["same"].needed > 6


def test_one_pair_tells_nothing():
    (found,) = verdict.compare_arms({"base": {0: 3.0, 1: 3.1}, "other": {1: 2.0}}, "base").values()
    assert found == verdict.Comparison(1, pytest.approx(-1.1), None, None, None, "no significant difference", None)


@pytest.mark.parametrize(("effect", "published"), [(1, 16), (1.5, 7), (2, 4), (3, 2)])
def test_the_seeds_of_arms_without_pairs_are_those_of_the_tables_of_power(effect, published):
    assert verdict.count_seeds_per_arm(0.01 * effect, 0.01) == published


def test_arms_that_share_no_seed_are_told_apart_by_chance_in_one_of_twenty():
    """Of unequal sizes and deviations, where pooled deviations would tell the small, noisy arm apart far too often."""
    drawn, wrong, inside = np.random.default_rng(3), 0, 0
    for _ in range(1500):
        noisy, quiet = 3 + 4 * drawn.standard_normal(4), 3 + drawn.standard_normal(12)
        losses = {"quiet": dict(enumerate(quiet.tolist())), "noisy": dict(enumerate(noisy.tolist(), start=100))}
        found = verdict.compare_arms(losses, "quiet")["noisy"]
        wrong += found.p < 0.05
        inside += found.interval[0] < 0 < found.interval[1]
        assert not found.paired and found.n == 4
    assert 0.035 < wrong / 1500 < 0.075 and wrong + inside == 1500


def test_the_pareto_front_keeps_what_nothing_cheaper_beats():
    """`slow` is better than `base` by far and costs more, `bad` is worse and costs as much as `base`, `tie` is as good
    and costs more."""
    drawn = np.random.default_rng(4)
    middle = {"base": 3.0, "slow": 2.5, "bad": 3.4, "tie": 3.0}
    losses = {arm: dict(enumerate((at + 0.01 * drawn.standard_normal(5)).tolist())) for arm, at in middle.items()}
    costs = {"base": 100.0, "slow": 150.0, "bad": 100.5, "tie": 120.0}
    assert verdict.find_front(losses, costs, 0.01) == ["base", "slow", "tie"]
    assert verdict.find_front(losses, {**costs, "slow": 100.9}, 0.01) == ["slow"]


# ---------------------------------------------------------------- effective speedup


@pytest.mark.parametrize(
    ("baseline", "variant", "limit", "exponent", "published"),
    [(3.8104, 3.7542, 1.6, 0.0941, 1.315), (2.8723, 2.8508, 1.2, 0.0842, 1.166)],
)
def test_an_effective_speedup_is_as_published(baseline, variant, limit, exponent, published):
    assert PowerLaw(limit, exponent).speedup(baseline, variant) == pytest.approx(published, abs=5e-4)


def test_an_effective_speedup_is_the_budget_at_which_the_law_has_the_loss():
    """A baseline of L = 2 + 30·D^−0.3 trained 1.7 times as long is 1.7 times as good."""
    tokens, factor = 4e6, 1.7
    pairs = [(2 + 30 * tokens**-0.3, 2 + 30 * (factor * tokens) ** -0.3)]
    found = find_speedup(pairs, [PowerLaw(2, 0.3)])
    assert found.factor == pytest.approx(factor) and found.interval is None
    assert found.times(0.5).factor == pytest.approx(factor / 2)
    assert PowerLaw(2, 0.3).speedup(3, 1.9) == math.inf and math.isnan(PowerLaw(2, 0.3).speedup(1.9, 1.8))


def test_the_interval_of_a_speedup_holds_the_true_one_in_most_experiments(monkeypatch):
    monkeypatch.setattr(speedup, "RESAMPLES", 300)
    drawn, inside, true = np.random.default_rng(5), 0, PowerLaw(2, 0.3).speedup(2.4, 2.38)
    for trial in range(40):
        noise = 0.003 * drawn.standard_normal((12, 2))
        pairs = [(2.4 + a, 2.38 + b) for a, b in noise.tolist()]
        low, high = find_speedup(pairs, [PowerLaw(2, 0.3)], seed=trial).interval
        inside += low <= true <= high
    assert inside >= 34


# ---------------------------------------------------------------- real runs


@pytest.fixture
def sweep(here):  # noqa: F811
    own = [*BASE[:-1], *SMALL, "batch_size=8", "eval_every=null", "save_every=null", "steps=3", "sample=null"]
    asked = ["train", "-m", "model=llama-tiny", *own, "attention=gqa,mqa", "seed=0,1", "hydra.sweep.dir=sweeps/heads"]
    assert run(asked) == 0
    return here / "sweeps" / "heads"


def test_a_sweep_is_reported(sweep, here, capsys, refused):  # noqa: F811
    capsys.readouterr()
    assert run(["report", str(sweep), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == "attention=gqa"
    base, other = found["arms"]
    jobs = list_job_folders(sweep)
    results = [json.loads((job / "result.json").read_text()) for job in jobs]
    losses = [each["val_loss"] for each in results]
    assert list(base["val_loss"].values()) == losses[:2] and list(other["val_loss"].values()) == losses[2:]
    assert other["difference"] == pytest.approx(sum(losses[2:]) / 2 - sum(losses[:2]) / 2)
    (first, *_) = json.loads((sweep / "sweep.json").read_text())["jobs"].values()
    assert base["forecast"]["peak_memory"]["predicted"] == first["predicted"]["peak_memory"]
    assert base["forecast"]["peak_memory"]["measured"] > 0
    assert other["costs"]["params"] == results[2]["params"] and other["unmatched"]["cache_bytes"] == 0.5
    assert run(["report", str(sweep), "--baseline", "attention=mqa", "--md"]) == 0
    said = capsys.readouterr().out
    assert "| attention=mqa | 2 |" in said and "baseline" in said and "KV cache per sequence" in said
    assert run(["report", str(sweep), "--plot", "report.png", "--html", "report.html", "--csv"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert [float(row[header.index("mean")]) for row in rows] == pytest.approx(
        [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    )
    page = (here / "report.html").read_text()
    assert "attention=mqa" in page and "<svg" in page and "Not matched: " in page
    assert not re.search(r"(src|href)=.?https?:", page), "a page needs no network"
    assert (here / "report.png").read_bytes().startswith(b"\x89PNG")
    assert refused("report", str(sweep), "--baseline", "attention=mla") == [
        "baseline: there is no arm 'attention=mla', found: attention=gqa, attention=mqa"
    ]
    assert "arms: there are 1, found all runs (two)" in refused("report", str(jobs[0]), str(jobs[1]))
    (line,) = refused("report", str(sweep), "--metric", "bleu")[:1]
    assert "has no bleu (--metric NAME names another)" in line
