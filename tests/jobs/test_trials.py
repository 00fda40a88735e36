"""Trials of a learning rate by optuna: ended early where poor, and gone on with after an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.command_lines import TINY
from zoo.cli import run
from zoo.errors import Pruned
from zoo.jobs.plan import LaunchPlan

pytest.importorskip("optuna", reason="needs optuna (the extra `sweep`)")

STEPS, EVERY, COUNT = 18, 2, 9
ASKED = ["train", "-m", *TINY, "hydra.sweep.dir=sweep", "attention=gqa,mqa", "seed=0,1", "optim.lr=1e-3"]
ASKED += [f"steps={STEPS}", f"eval_every={EVERY}", "--search-lr", "--trials", str(COUNT)]


def loss_after(step: int, lr: float, best: float) -> float:
    """A loss that falls with the steps, to one that is the higher the further the rate is from the best."""
    return 2 + 3 * math.exp(-step / 5) + (math.log10(lr / best)) ** 2


class Trainer:
    """Trains by a formula in place of `LaunchPlan.launch`, and is interrupted after `lasts` runs."""

    def __init__(self, lasts: float = math.inf) -> None:
        self.lasts, self.curves = lasts, {}

    def launch(self, plan: LaunchPlan, folder: Path, jobs: list) -> None:
        from zoo.jobs.trials import PruningCallback

        for each in jobs:
            if len(self.curves) >= self.lasts:
                raise KeyboardInterrupt
            trial = json.loads((folder / "sweep.json").read_text())["jobs"][each.name].get("trial")
            pruning = PruningCallback(folder, **trial) if trial else None
            lr, heads = each.planned.settings.optim.lr, each.planned.spec.blocks["layer"].attention.n_kv_heads
            curve = self.curves.setdefault(each.name, {"lr": lr, "heads": heads, "losses": {}})["losses"]
            result = {"status": "done", "params": 1}
            for step in range(EVERY, STEPS + 1, EVERY):
                result["val_loss"] = curve[step] = loss_after(step, lr, 2e-3 if heads > 1 else 3e-4)
                try:
                    if pruning is not None:
                        pruning.after_eval(SimpleNamespace(metrics={"val_loss": curve[step]}, step=step))
                except Pruned as ended:
                    result = {"status": ended.status, "error": str(ended)}
                    break
            (folder / each.name).mkdir(exist_ok=True)
            (folder / each.name / "result.json").write_text(json.dumps(result))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(LaunchPlan, "launch", lambda plan, folder, jobs: made.launch(plan, folder, jobs))
    return made


def test_poor_rates_of_an_arm_are_ended_early_and_its_seeds_run_at_the_best(here: Path, capsys, trainer) -> None:
    assert run(ASKED) == 0
    written = json.loads(Path("sweep/sweep.json").read_text())
    for heads, best in ((2, 2e-3), (1, 3e-4)):
        curves = {name: each for name, each in trainer.curves.items() if (each["heads"] > 1) == (heads > 1)}
        (found,) = [each for name, each in written["search"].items() if ("gqa" in name) == (heads > 1)]
        ended = {name: each for name, each in curves.items() if len(each["losses"]) < STEPS // EVERY}
        assert COUNT - 2 <= len(found["losses"]) <= COUNT  # two may be the same to three digits
        assert found["pruned"] >= len(ended) > 0
        assert abs(math.log10(found["best"] / best)) < 0.5
        for each in ended.values():
            last = max(each["losses"])
            rivals = [other["losses"][last] for other in curves.values() if last in other["losses"]]
            assert last >= STEPS // 9 and each["losses"][last] > 1.01 * min(rivals)
        whole = [each["losses"][STEPS] for name, each in curves.items() if name not in ended]
        tried = [loss for loss in found["losses"].values() if loss is not None]
        assert found["val_loss"] == pytest.approx(min(tried)) and found["val_loss"] >= min(whole)
    runs = [job for job in written["jobs"].values() if "search" not in job]
    assert sorted(job["seed"] for job in runs) == [0, 0, 1, 1] and not any("trial" in job for job in runs)
    assert "Learning rates" in (out := capsys.readouterr().out) and "ended early" in out


@pytest.mark.slow
def test_an_interrupted_search_goes_on_where_it_was(here: Path, capsys, trainer) -> None:
    trainer.lasts = 5
    assert run(ASKED) == 130
    before = dict(trainer.curves)
    trainer.lasts = math.inf
    trainer.curves = {}
    assert run(ASKED) == 0
    assert not before.keys() & trainer.curves.keys(), "what had ended is not run again"
    found = json.loads(Path("sweep/sweep.json").read_text())["search"]
    tried = sum(len(each["losses"]) for each in found.values())
    assert len(before) + len(trainer.curves) == tried + 4  # and two seeds of both arms, which no search has seen


def test_trials_are_refused_where_nothing_would_end_them(here: Path, refused) -> None:
    (line,) = refused(*ASKED[:-3], "--trials", "4")
    assert line == "trials: are those of a search of learning rates (--search-lr)"
    late = [each for each in ASKED if not each.startswith("eval_every")]
    (line,) = refused(*late, "eval_every=null")
    assert line == "trials: poor rates are ended by their evaluations, found eval_every=null of 18 steps (eval_every=2)"


@pytest.mark.slow
def test_a_run_of_a_search_ends_at_the_step_that_says_so(here: Path, capsys) -> None:
    asked = [each for each in ASKED if not each.startswith("attention")]
    assert run([*asked, "attention=mqa"]) == 0
    states = {}
    for file in Path("sweep").glob("*/result.json"):
        result = json.loads(file.read_text())
        lines = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        states.setdefault(result["status"], []).append(max(line["step"] for line in lines))
    assert set(states["done"]) == {STEPS} and states["pruned"] and max(states["pruned"]) < STEPS
