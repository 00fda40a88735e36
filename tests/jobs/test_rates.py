"""The search of learning rates: the same for every arm, its edge and its window told, and its runs are no arm's."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from support.command_lines import TINY, list_job_folders
from zoo.analysis.verdict.rate_optimum import TOLERANCE
from zoo.cli import run
from zoo.jobs.plan import LaunchPlan
from zoo.jobs.rates import FEWEST, MOST, SEED, RateSearch

SWEEP = "hydra.sweep.dir=sweep"


def search(optimum: float, bend: float, floor: float = 2.0, start: float = 1e-3) -> RateSearch:
    """Search where the loss is a parabola of the rate's decades, with its least at `optimum` decades."""
    made = RateSearch(start)
    while not made.finished:
        for each in made.ask():
            decade = math.log10(float(made.rate(each)))
            made.tell(each, floor * (1 + bend * (decade - optimum) ** 2))
    return made


def test_the_chosen_rate_is_the_minimum_of_the_losses_though_no_run_had_it() -> None:
    drawn = random.Random(3)
    for _ in range(100):
        optimum, bend = drawn.uniform(-3.7, -2.3), drawn.uniform(0.2, 2)
        found = search(optimum, bend).to_dict()
        # A rate has three digits. Of a steep parabola the losses far beyond the window count less.
        near = 0.01 if bend < 0.7 else 0.06
        assert abs(math.log10(found["best"]) - optimum) <= near
        assert not found["edge"] and not found["extended"] and len(found["losses"]) == FEWEST
        exact = 2 * math.sqrt(TOLERANCE / bend)
        assert exact - 0.26 <= found["window"] <= exact + 0.13


def test_a_best_rate_on_the_edge_extends_the_grid_once() -> None:
    beyond = search(-1.4, 0.5)
    assert beyond.extended and not beyond.to_dict()["edge"]
    assert len(beyond.losses) == MOST and abs(math.log10(beyond.to_dict()["best"]) + 1.4) <= 0.01
    far = search(-6.0, 0.5).to_dict()
    assert far["extended"] and far["edge"] and far["open"] and far["best"] < 1e-5


@pytest.mark.parametrize("optimum", [-3.0, -2.74, -2.26])
def test_a_search_that_is_over_spends_as_many_runs_as_another_that_goes_on(optimum: float) -> None:
    made = search(optimum, 0.5)
    assert made.finished and len(made.losses) == FEWEST
    further = made.ask()
    assert len(further) == 2 and not set(further) & made.losses.keys()


def test_rates_whose_runs_fail_bound_the_window() -> None:
    made = RateSearch(1.0)
    while not made.finished:
        for each in made.ask():
            made.tell(each, None if each > 0 else math.nan if each < -3 else 1.0 + 0.001 * abs(each))
    found = made.to_dict()
    assert found["best"] == 1.0 and not found["open"] and found["window"] == 0.5
    assert [loss is None for loss in found["losses"].values()] == [True, False, False, False, True, True, True]
    lost = RateSearch(1.0)
    for each in lost.ask():
        lost.tell(each, None)
    assert lost.best is None and lost.finished and lost.ask() == []


def train_by_formula(self: LaunchPlan, folder: Path, jobs: list) -> None:
    """Write the outcome of jobs whose loss follows from their rate: attention=mqa does best at a lower one."""
    for each in jobs:
        lr, heads = each.planned.settings.optim.lr, each.planned.spec.blocks["layer"].attention.n_kv_heads
        best = 3e-3 if heads > 1 else 1e-4
        result = {"status": "done", "val_loss": 3 + math.log10(lr / best) ** 2 + 0.01 * each.seed, "params": 1}
        (folder / each.name).mkdir()
        (folder / each.name / "result.json").write_text(json.dumps(result))


def test_each_arm_gets_the_same_search_and_its_seeds_run_at_its_best(here: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(LaunchPlan, "launch", train_by_formula)
    asked = ["train", "-m", *TINY, SWEEP, "attention=gqa,mqa", "seed=0,1", "optim.lr=1e-3", "--search-lr"]
    assert run(asked) == 0
    out = capsys.readouterr().out
    written = json.loads(Path("sweep/sweep.json").read_text())
    found = written["search"]
    assert {name: (each["best"], len(each["losses"]), each["extended"]) for name, each in found.items()} == {
        "attention=gqa": (pytest.approx(3e-3, rel=0.01), MOST, False),
        "attention=mqa": (pytest.approx(1e-4, rel=0.01), MOST, True),
    }
    jobs = written["jobs"].values()
    runs = {(job["arm"], job["seed"]): job["overrides"] for job in jobs if "search" not in job}
    assert runs.keys() == {(f"attention={kind}", seed) for kind in ("gqa", "mqa") for seed in (0, 1)}
    assert all("eval_part=reporting" in overrides for overrides in runs.values())
    searched = [job for job in jobs if "search" in job]
    assert len(searched) == 2 * MOST
    assert all(job["seed"] == SEED and "eval_part=tuning" in job["overrides"] for job in searched)
    assert "Learning rates" in out and out.count(" done") == 4
    before = [each.stat().st_mtime_ns for each in Path("sweep").glob("*/result.json")]
    assert run(asked) == 0
    assert [each.stat().st_mtime_ns for each in Path("sweep").glob("*/result.json")] == before
    assert json.loads(Path("sweep/sweep.json").read_text())["search"] == found


def test_a_rate_that_the_sweep_varies_is_not_searched(here: Path, refused) -> None:
    (line,) = refused("train", "-m", *TINY, SWEEP, "optim.lr=1e-3,1e-2", "--search-lr")
    assert line.startswith("search_lr: the sweep varies optim.lr itself, found optim.lr=0.001, optim.lr=0.01")


@pytest.mark.slow
def test_runs_of_a_search_are_no_arms(here: Path, capsys) -> None:
    asked = ["train", "-m", *TINY, SWEEP, "attention=gqa,mqa", "seed=0,1", "skip_nonfinite=0", "optim.lr=1e-2"]
    assert run([*asked, "--search-lr", "--plan", "--no-measure"]) == 0
    assert "the search of learning rates adds 7 to 9 runs per arm" in capsys.readouterr().out
    assert run([*asked, "--search-lr"]) == 0
    written = json.loads(Path("sweep/sweep.json").read_text())
    for name, each in written["search"].items():
        losses = [loss for loss in each["losses"].values() if loss is not None]
        assert each["val_loss"] == min(losses), name
    capsys.readouterr()
    assert run(["report", "sweep", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    arms = reported["arms"]
    assert reported["search"] == written["search"]
    assert [list(arm["val_loss"]) for arm in arms] == [["0", "1"]] * 2
    assert len(list_job_folders(Path("sweep"))) > 10
