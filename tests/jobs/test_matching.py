"""Matched budgets: each arm is solved for the baseline's figure, by numbers that other code counts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.command_lines import TINY
from zoo.cli import run
from zoo.cli.outlook import print_match
from zoo.costs import Setup, price
from zoo.errors import ConfigError
from zoo.jobs.forecast import Forecaster, Timing
from zoo.jobs.matching import Match, Matching, choose_dimension
from zoo.jobs.plan import plan_launch
from zoo.run.builder import build

ARMS = ("attention=mha,mqa", "seed=0,1")


def match(asked: Matching, *overrides: str, forecaster: object = None, known: dict | None = None) -> Match:
    with plan_launch([*TINY, *overrides], sweeps=True) as plan:
        return asked.match(plan, plan.list_points(), forecaster or Forecaster(measure=False), known)


def count_built(spec: object) -> int:
    return sum(each.numel() for each in build(spec, device="meta").parameters())


def flops_of(spec: object, settings: object) -> float:
    step = price(spec, Setup(context=settings.seq_len, optimizer=settings.optim.kind))["flops"]
    return settings.steps * (settings.batch_size * settings.seq_len * step["train"] + step.get("optimizer_step", 0))


FIGURES = {
    "params": lambda job: count_built(job.planned.spec),
    "flops": lambda job: flops_of(job.planned.spec, job.planned.settings),
    "active": lambda job: price(job.planned.spec)["params"]["active"],
    "non_embedding": lambda job: count_built(job.planned.spec) - job.planned.spec.vocab_size * job.planned.spec.d_model,
    "data": lambda job: job.planned.settings.steps * job.planned.settings.batch_size * job.planned.settings.seq_len,
}


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("asked", "overrides"),
    [
        (Matching("params", "d_ff"), ARMS),
        slow(Matching("flops", "d_ff"), (*ARMS, "optim=muon")),
        slow(Matching("params", "d_model", "attention=gqa"), ("attention=mha,gqa", "model.n_layers=6", "seed=0,1")),
        (Matching("non_embedding", "d_ff"), ARMS),
        (Matching("active", "d_ff"), ("ffn=gated,moe", "+model.n_experts=4", "+model.top_k=2", "seed=0,1")),
        slow(Matching("flops", "steps"), (*ARMS, "optim=adamw,muon", "steps=20000")),
        slow(Matching("data", "steps"), ("batch_size=2,3,4", "seed=0,1", "steps=360")),
    ],
)
def test_arms_have_the_baselines_figure_within_one_percent(here: Path, asked: Matching, overrides: tuple) -> None:
    width = random.Random(str(asked)).randrange(400, 700)
    found = match(asked, *overrides, *([f"model.d_ff={width}"] if asked.by != "d_ff" else []))
    figures = [FIGURES[asked.budget](arm.jobs[0]) for arm in found.arms]
    assert len(figures) >= 2 and figures == pytest.approx([figures[0]] * len(figures), rel=0.01)
    if asked.baseline:
        assert found.arms[0].name.startswith(asked.baseline) and "d_model" not in found.arms[0].name
    for arm in found.arms:
        one, other = arm.jobs
        assert (one.seed, other.seed) == (0, 1)
        assert [word.replace("seed=0", "seed=1") for word in one.typed] == list(other.typed)


def test_what_is_not_matched_is_said(here: Path) -> None:
    found = match(Matching("params", "d_ff"), "attention=mha,mqa", "seed=0,1")
    assert found.unmatched == ["elementwise", "cache_bytes"] and found.ratios(found.arms[0]) == {}
    ratios = found.ratios(found.arms[1])
    assert 0.9 < ratios.pop("elementwise") < 1  # fewer keys are rotated
    assert ratios == {"cache_bytes": pytest.approx(1 / 6)}
    assert found.arms[1].name == f"attention=mqa d_ff={found.arms[1].value}" and found.arms[1].value % 8 == 0
    cache = match(Matching("kv", "n_layers"), "attention=mha,gqa", "model.n_layers=2")
    assert [arm.value for arm in cache.arms] == [2, 6] and cache.unmatched == [
        *("params", "active", "all_flops", "elementwise")
    ]


def test_a_norm_of_queries_and_keys_is_not_free(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = match(Matching("params", "d_ff"), "+model.attention.qk_norm=null,rmsnorm")
    assert found.unmatched == ["elementwise"] and 1.02 < found.ratios(found.arms[1])["elementwise"] < 1.3
    print_match(found)
    assert "not matched: elementwise FLOPs" in capsys.readouterr().out


def test_a_cache_is_matched_by_heads_where_heads_can_and_by_depth_elsewhere(here: Path) -> None:
    def choose(*overrides: str) -> str:
        with plan_launch([*TINY, *overrides], sweeps=True) as plan:
            return choose_dimension(plan, plan.list_points(), "kv", None)

    arms = ("attention=mha,gqa", "model.n_layers=2")
    assert choose(*arms) == "n_kv_heads"
    found = match(Matching("kv", "n_kv_heads"), *arms)
    assert [arm.value for arm in found.arms] == [6, 6] and found.arms[1].jobs[0].planned.spec.blocks[
        "layer"
    ].attention.n_kv_heads == 6
    assert choose("attention=mha,mqa") == choose("attention=gqa", "model.n_kv_heads=2,3") == "n_layers"


class Stopwatch:
    """Forecasts a second a step, and two of a model with all heads."""

    def forecast(self, planned: object) -> object:
        slow = planned.spec.blocks["layer"].attention.n_kv_heads == 6
        return SimpleNamespace(timing=Timing(2.0 if slow else 1.0, 0, 0, 1, None, 0.03 if slow else 0.04), fault=None)


def test_equal_time_is_by_measured_steps_and_stays_when_a_sweep_goes_on(here: Path) -> None:
    asked = Matching("time", "steps")
    found = match(asked, "attention=mha,mqa", "steps=300", forecaster=Stopwatch())
    assert [arm.value for arm in found.arms] == [300, 600] and found.unmatched == [
        "params",
        "active",
        "all_flops",
        "elementwise",
        "cache_bytes",
        "tokens",
    ]
    assert found.noise == pytest.approx(0.05) and found.to_dict()["arms"][1]["noise"] == 0.04
    known = {"attention=mqa": 612}
    again = match(asked, "attention=mha,mqa,gqa", "steps=300", forecaster=Stopwatch(), known=known)
    assert [arm.value for arm in again.arms] == [300, 612, 600]


def test_steps_that_an_interpolation_gives_are_a_dimension(here: Path) -> None:
    found = match(Matching("flops", "steps"), "attention=mha,mqa", "steps=${.log_every}", "log_every=400")
    assert found.arms[0].value == 400 and 400 < found.arms[1].value < 500


@pytest.mark.parametrize(
    ("asked", "overrides", "fault"),
    [
        (
            ("params", "n_layers"),
            ["attention=mha,mqa"],
            "cannot be matched by n_layers within 1 %, found the",
        ),
        (("kv", "d_ff"), ["attention=mha,mqa"], "match: attention=mqa: d_ff changes nothing of it"),
        (("params", "d_fff"), ["attention=mha,mqa"], "match: attention=mqa: d_fff is None there"),
        (("params", "d_ff"), ["attention=mha,mqa", "model.d_ff=64,128"], "match_by: is d_ff, which the sweep varies"),
        (("params", "steps"), ["attention=mha,mqa"], "match_by: is steps, which change no params"),
        (("data", "d_ff"), ["attention=mha,mqa"], "match_by: is d_ff, and data is matched by the number of steps"),
        (("params", "d_ff"), ["seed=0,1"], "match: there is one arm, all runs"),
        (
            ("params", "d_ff", "mha"),
            ["attention=mha,mqa"],
            "baseline: there is no arm 'mha', found: att",
        ),
    ],
)
def test_what_cannot_be_matched_says_why(here: Path, asked: tuple, overrides: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        match(Matching(*asked), *overrides)
    assert fault in str(caught.value)


@pytest.mark.slow
def test_a_matched_sweep_runs_what_was_solved(here: Path, capsys) -> None:
    asked = ["train", "-m", *TINY, "hydra.sweep.dir=sweep", "attention=mha,mqa", "--match", "params"]
    assert run(asked) == 0
    out = capsys.readouterr().out
    assert "matched on params" in out and "not matched: " in out
    written = json.loads(Path("sweep/sweep.json").read_text())
    results = [json.loads(Path("sweep", name, "result.json").read_text()) for name in written["jobs"]]
    assert [each["params"] for each in results] == [arm["params"] for arm in written["match"]["arms"]]
    assert results[1]["params"] == pytest.approx(results[0]["params"], rel=0.01)
    assert f"model.d_ff={written['match']['arms'][1]['d_ff']}" in results[1]["overrides"]


def test_options_of_a_match_are_told_from_keys_and_from_one_another(here: Path, refused) -> None:
    (line,) = refused("train", "-m", *TINY, "seed=0,1", "match=params")
    assert line == "match=params: is an option of a sweep (--match params)"
    (line,) = refused("train", "-m", *TINY, "attention=mha,mqa", "--match", "parms")
    assert line == "match: there is no budget 'parms' (did you mean 'params'?)"
    assert refused("train", "-m", *TINY, "seed=0,1", "--baseline", "x")[0].startswith("baseline: is about what is")
