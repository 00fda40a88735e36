"""Experiments: named arms from a file or from flags, registered before they run, tuned alike, judged at their looks."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import yaml

import zoo
from support.command_lines import TINY
from support.page_reading import ReadPage
from zoo.analysis.verdict.difference import LossNoise
from zoo.analysis.verdict.power import count_seeds
from zoo.analysis.verdict.spending import find_look_levels
from zoo.cli import run
from zoo.experiments import noise_atlas
from zoo.experiments.arm_tasks import Probing
from zoo.experiments.experiment import Experiment, find_recipe, read_recipe
from zoo.experiments.looking import report_experiment, report_folders
from zoo.experiments.power_check import list_blind
from zoo.experiments.running import design_sweep, plan_experiment
from zoo.jobs.outlook import Outlook
from zoo.jobs.plan import LaunchPlan, plan_launch
from zoo.jobs.rates import search_rates
from zoo.jobs.sweep import Sweep
from zoo.report.history import RunRecord
from zoo.report.verdict_plot import make_figure
from zoo.report.verdicts import format_spread

ARMS = {"many heads": "", "one head": "attention=mqa"}
SHARED = ["model=llama-tiny", *TINY]


class Trainer:
    """Writes the outcome of jobs by a formula of their rate, seed and arm, in place of training."""

    def __init__(self, gap: float = 0.0) -> None:
        self.gap, self.ran, self.decay = gap, 0, False

    def launch(self, plan: LaunchPlan, folder: Path, jobs: list) -> None:
        for each in jobs:
            settings, heads = each.planned.settings, each.planned.spec.blocks["layer"].attention.n_kv_heads
            own = folder / each.name
            own.mkdir(exist_ok=True)
            noise = 0.01 * math.sin(37 * settings.seed + heads)
            loss = 3 + math.log10(settings.optim.lr / 2e-3) ** 2 + noise - (self.gap if heads == 1 else 0)
            loss += math.log10(settings.optim.weight_decay / 0.04) ** 2 if self.decay else 0
            result = {"status": "done", "val_loss": loss, "tokens": 64, "params": 1, "seconds": 1.0, "flops": 1.0}
            if math.isnan(self.gap) and heads == 1 and settings.seed < 100:
                result = {"status": "diverged", "error": "step 2: the loss is nan", "tokens": 32}
            (own / "result.json").write_text(json.dumps(result))
            (own / "config.yaml").write_text(yaml.safe_dump({"seed": settings.seed, "seq_len": settings.seq_len}))
            (own / "model.yaml").write_text(yaml.safe_dump(zoo.grammar.to_essentials(each.planned.spec)))
            self.ran += 1


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(LaunchPlan, "launch", lambda plan, folder, jobs: made.launch(plan, folder, jobs))
    return made


def write(folder: Path, **changed: object) -> Path:
    node = {"arms": ARMS, "shared": SHARED, "seeds": 3, "expect": [], **changed}
    file = folder / "heads.yaml"
    file.write_text(yaml.safe_dump(node, sort_keys=False))
    return file


def read_outcome(folder: Path = Path("sweeps/experiments/heads")) -> dict:
    return json.loads((folder / "verdict.json").read_text())


def test_an_experiment_of_a_file_trains_named_arms_and_judges_them(here: Path, capsys, trainer: Trainer) -> None:
    trainer.gap = 0.1
    file = write(here, expect=[{"arm": "one head", "against": "many heads", "verdict": "better"}])
    assert run(["experiment", str(file), "--run"]) == 0
    said = capsys.readouterr().out
    assert "one head − many heads: better" in said and "before its first run; unchanged" in said
    (finding,) = read_outcome()["findings"]
    assert finding["found"] == "better" and finding["holds"] and finding["value"] == pytest.approx(-0.1, abs=0.02)
    assert trainer.ran == 6
    assert run(["experiment", str(file), "--run"]) == 0 and trainer.ran == 6, "what has ended is not run again"
    assert run(["experiment", str(file), "--report"]) == 0 and trainer.ran == 6
    capsys.readouterr()
    assert run(["report", "sweeps/experiments/heads", "--json"]) == 0, "and its folder is a sweep's"
    assert [arm["arm"] for arm in json.loads(capsys.readouterr().out)["arms"]] == list(ARMS)


def test_the_terminal_the_file_the_page_and_the_picture_give_one_interval(here: Path, capsys, trainer: Trainer) -> None:
    trainer.gap = 0.002
    pair = {"arm": "one head", "against": "many heads", "verdict": "better"}
    arms = {**ARMS, "all heads": "attention=mha"}
    file = write(here, arms=arms, tune=True, expect=[pair, {**pair, "metric": "lr window"}])
    assert run(["experiment", str(file), "--run"]) == 0
    loss, window = read_outcome()["findings"]
    said = " ".join(capsys.readouterr().out.split())
    tables = ReadPage.of(Path("sweeps/experiments/heads/report.html")).tables
    rows = ["|".join(row) for table in tables for row in table]
    for each in (loss, window):
        shown = format_spread(each["value"], (each["interval"][1] - each["interval"][0]) / 2, "+")
        assert f"{shown} {each['p']:.3f}" in said
        assert sum(f"{shown}|{each['p']:.3f}" in row for row in rows) == (1 if each["metric"] else 2)
    report = report_experiment("heads", read_recipe(file), Path("sweeps/experiments/heads")).report
    assert report is not None and "over all comparisons of the experiment" in said
    assert run(["report", "sweeps/experiments/heads", "--json"]) == 0
    sweep = json.loads(capsys.readouterr().out)["arms"][1]
    assert sweep["interval"] == loss["interval"] and sweep["adjusted"] == loss["p"], "and so does its folder"
    assert run(["experiment", str(file), "--no-measure"]) == 0
    assert "after Holm over 2 comparisons" in capsys.readouterr().out, "as many as are tested"
    drawn = make_figure(report).axes[0]
    assert "(Holm over all comparisons of the experiment)" in drawn.get_title()
    assert list(np.asarray(drawn.lines[0].get_xdata())) == loss["interval"]
    named = [pair, {**pair, "metric": "lr window"}, {**pair, "arm": "all heads", "verdict": "any"}]
    assert run(["experiment", str(write(here, arms=arms, tune=True, expect=named)), "--report"]) == 0
    said = capsys.readouterr().out
    assert said.count("Learning rates") == 1 and ", uncorrected)" in " ".join(said.split())
    third = read_outcome()["findings"][2]
    assert report.found["all heads"].interval == tuple(third["interval"]), "an unexpected arm is one comparison more"


def test_an_expectation_that_is_not_met_is_a_result_and_no_failure(here: Path, capsys, trainer: Trainer) -> None:
    file = write(here, expect=[{"arm": "one head", "against": "many heads", "verdict": "better"}])
    assert run(["experiment", str(file), "--run"]) == 0
    (finding,) = read_outcome()["findings"]
    assert finding["found"] == "inconclusive" and not finding["holds"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"{finding['p']:.3f} not shown" in said, "which refutes nothing"
    assert re.search(
        r"a new experiment of about \d+ seeds \(\d+ to [\d,]+: n = 3 leaves σ uncertain\), [\d.]+ s\)", said
    )


def test_the_same_experiment_is_made_by_flags(here: Path, trainer: Trainer) -> None:
    arms = [word for name, overrides in ARMS.items() for word in ("--arm", f"{name}={overrides}")]
    asked = ["experiment", *arms, "--seeds", "3", "--margin", "0.5", "--out", "flags", *SHARED]
    assert run([*asked, "--run"]) == 0
    by_flags = json.loads(Path("flags/sweep.json").read_text())["jobs"]
    assert run(["experiment", str(write(here)), "--run"]) == 0
    by_file = json.loads(Path("sweeps/experiments/heads/sweep.json").read_text())["jobs"]
    assert by_flags.keys() == by_file.keys() and [job["arm"] for job in by_flags.values()] == 3 * ["many heads"] + 3 * [
        "one head"
    ]
    assert read_outcome(Path("flags"))["findings"][0]["found"] == "equivalent"


def test_the_own_margin_of_an_expectation_is_written_and_drawn(here: Path, capsys, trainer: Trainer) -> None:
    pair = {"arm": "one head", "against": "many heads", "verdict": "equivalent", "margin": 0.5}
    file = write(here, arms={**ARMS, "all heads": "attention=mha"}, margin=0.25, expect=[pair])
    assert run(["experiment", str(file), "--run"]) == 0
    assert "one head − many heads: equivalent within ±0.5" in " ".join(capsys.readouterr().out.split())
    folder = Path("sweeps/experiments/heads")
    page = (folder / "report.html").read_text()
    assert "equivalent within ±0.5:" in page and "equivalent within ±0.25:" in page
    report, _ = report_folders([folder])
    bands = [each.get_paths()[0].get_extents().xmax for each in make_figure(report).axes[0].collections]
    assert bands == [0.5, 0.25], "a band behind each arm, as wide as its own margin"


def test_what_changes_after_registration_is_listed_with_the_verdict(here: Path, capsys, trainer: Trainer) -> None:
    expected = {"arm": "one head", "against": "many heads"}
    assert run(["experiment", str(write(here, expect=[{**expected, "verdict": "better"}])), "--run"]) == 0
    first = read_outcome()["registration"]
    capsys.readouterr()
    file = write(here, seeds=4, margin=0.5, expect=[{**expected, "verdict": "equivalent"}])
    assert run(["experiment", str(file), "--run"]) == 0
    second = read_outcome()["registration"]
    assert second["hash"] == first["hash"] and second["parts"] == first["parts"]
    (change,) = second["changes"]
    assert set(change["of"]) == {"seeds", "margin", "expectations"}
    assert set(change["stated"]) == set(change["of"]) and change["stated"]["margin"] == {"margin": 0.5}
    said = " ".join(capsys.readouterr().out.split())
    assert "seeds (seeds 3 → 4), margin (margin none → 0.5), expectations (" in said
    assert 'expectations (one head − many heads: equivalent: verdict "better" → "equivalent")' in said
    assert run(["experiment", str(file), "--report", "--margin", "0.4"]) == 0
    assert [set(each["of"]) for each in read_outcome()["registration"]["changes"]][1:] == [{"margin"}]
    assert "; changed afterwards: 20" in Path("sweeps/experiments/heads/report.html").read_text()


def test_arms_are_tuned_on_a_seed_and_rows_that_no_verdict_reads(here: Path, trainer: Trainer) -> None:
    file = write(here, tune=True, shared=[*SHARED, "optim.lr=1e-3"])
    assert run(["experiment", str(file), "--run"]) == 0
    written = json.loads(Path("sweeps/experiments/heads/sweep.json").read_text())
    assert {name: each["best"] for name, each in written["search"].items()} == {
        name: pytest.approx(2e-3, rel=0.01) for name in ARMS
    }
    parts = {
        ("search" in job, word) for job in written["jobs"].values() for word in job["overrides"] if "eval_part" in word
    }
    assert parts == {(True, "eval_part=tuning"), (False, "eval_part=reporting")}


PROXY = ["model.d_model=32", "model.n_heads=2", "model.n_kv_heads=1", "model.d_ff=85"]


def test_wide_arms_are_tuned_on_narrow_models_under_mup(here, capsys, refused, trainer, monkeypatch) -> None:
    shared = [*SHARED, "optim.lr=1e-3", "parametrisation=mup", "parametrisation.base_width=32"]
    arms = {"many heads": "", "normed": "model.attention.qk_norm=rmsnorm"}
    file = write(here, arms=arms, tune={"proxy": PROXY}, shared=shared, seeds=2)
    monkeypatch.setattr(noise_atlas, "find_run_noise", lambda params: LossNoise(params / 1e6, 99))
    assert run(["experiment", str(file), "--run"]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("7, 32 wide") == 4, "equal effort, in both tables"
    folder = Path("sweeps/experiments/heads")
    written = json.loads((folder / "sweep.json").read_text())
    widths = {("search" in job, RunRecord(folder / name).spec.d_model) for name, job in written["jobs"].items()}
    assert widths == {(True, 32), (False, 192)}
    for name in arms:
        assert written["search"][name]["best"] == pytest.approx(2e-3, rel=0.01)
    reported = [job["overrides"] for job in written["jobs"].values() if "search" not in job]
    assert len(reported) == 4 and all("optim.lr=0.002" in each for each in reported)
    (finding,) = read_outcome()["findings"]
    assert finding["rate_error"] > 0
    sizes = {job["label"]: job["predicted"]["params"] for job in written["jobs"].values() if "search" in job}
    noted = {name: each["noise"] for name, each in read_outcome()["searches"].items()}
    assert noted == {name: [size / 1e6, 99] for name, size in sizes.items()}, "that of the narrow models"
    monkeypatch.setattr(Outlook, "predict", lambda _, job: {"wall_seconds": job.planned.spec.d_model})
    assert plan_experiment(read_recipe(file), folder, measure=False).search_seconds == 32 + 32, "what narrow runs cost"
    standard = write(here, arms=arms, tune={"proxy": PROXY})
    assert "many heads does not train under muP" in refused("experiment", str(standard))[0]


@pytest.mark.parametrize(
    ("proxy", "line"),
    [
        ("steps=1 model.d_model=32", "steps=1 is no size of the model"),
        ("model.d_model=192", "many heads is 192 wide, and its proxy 192"),
        ("model.d_model=32 model.n_layers=2", "many heads has 1 layers, and its proxy 2"),
    ],
)
def test_a_proxy_whose_best_rate_is_another_is_refused(here: Path, refused, proxy: str, line: str) -> None:
    file = write(here, tune={"proxy": proxy}, shared=[*SHARED, "parametrisation=mup"])
    assert line in refused("experiment", str(file), "--no-measure")[0]


@pytest.mark.slow
def test_the_best_rate_of_a_narrow_model_is_that_of_the_wide_one_under_mup(here: Path) -> None:
    heads = [f"model.{name}" for name in ("head_dim=16", "d_model=128", "n_heads=8", "n_kv_heads=8", "d_ff=340")]
    shared = [*SHARED, *heads, "parametrisation=mup", "parametrisation.base_width=32", "optim.lr=4e-3"]
    shared += ["steps=40", "batch_size=4", "seq_len=32", "eval_batches=8", "hydra.sweep.dir=rates"]
    with plan_launch(shared, sweeps=True, arms={"wide": []}) as plan, plan.hold_folder() as folder:
        launch = lambda jobs, _: plan.launch(folder, jobs)  # noqa: E731
        found = [
            float(search_rates(plan, Sweep.read(folder), plan.list_points(), launch, proxy=proxy)[1]["wide"].choose())
            for proxy in ((), [*PROXY, "model.n_kv_heads=2"])
        ]
    assert abs(math.log10(found[0] / found[1])) < 0.25, "without muP the wide one's is about four times lower"


def test_a_short_form_keeps_the_rates_of_its_configs() -> None:
    _, recipe = find_recipe("qk-norm")
    assert design_sweep(recipe).search_lr and not design_sweep(recipe, short_form=True).search_lr


def test_an_interrupted_experiment_says_last_how_to_go_on(here: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LaunchPlan, "launch", interrupt)
    assert run(["experiment", str(write(here)), "--run"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("heads: interrupted; the same command goes on") and "sweeps/experiments/heads" in last


def test_after_an_interruption_the_complete_seeds_are_judged_and_missing_runs_named(here, capsys, refused, trainer):
    trainer.gap = 0.5
    own, file = Path("sweeps/experiments/heads"), write(here, seeds=5)
    assert run(["experiment", str(file), "--run"]) == 0
    jobs = {
        (job["arm"], job["seed"]): own / name
        for name, job in json.loads((own / "sweep.json").read_text())["jobs"].items()
    }
    shutil.rmtree(jobs["one head", 1])
    (jobs["many heads", 3] / "result.json").unlink()
    capsys.readouterr()
    assert run(["experiment", str(file), "--report"]) == 0
    said, found = " ".join(capsys.readouterr().out.split()), read_outcome()
    assert "without 2 runs (many heads, seed 3: is cut off" in said and "one head, seed 1: has not begun)" in said
    assert [*found["values"]["val_loss"]["one head"]] == ["0", "2", "4"], "a seed needs both arms"
    assert found["level"] == pytest.approx(find_look_levels((3, 5))[0]) and found["level"] < 0.02
    assert found["findings"][0]["found"] == "better" and "Not complete" in (own / "report.html").read_text()
    for seed in (0, 2):
        shutil.rmtree(jobs["one head", seed])
    (line,) = refused("experiment", str(file), "--report")
    assert "1 of 5 seeds are complete, and two have a spread; " in line and line.endswith("(--run)")


def test_further_numbers_are_tuned_at_the_rate_that_was_found(here: Path, capsys, trainer: Trainer) -> None:
    trainer.decay = True
    file = write(here, tune=["optim.weight_decay"], shared=[*SHARED, "optim.lr=1e-3"])
    assert run(["experiment", str(file), "--run"]) == 0
    written = json.loads(Path("sweeps/experiments/heads/sweep.json").read_text())
    for found in written["search"].values():
        assert found["best"] == pytest.approx(2e-3, rel=0.01)
        assert found["further"]["optim.weight_decay"]["best"] == pytest.approx(0.04, rel=0.01)
    reported = [job["overrides"] for job in written["jobs"].values() if "search" not in job]
    assert all({"optim.lr=0.002", "optim.weight_decay=0.04"} <= set(each) for each in reported) and len(reported) == 6
    assert "many heads, optim.weight_decay" in " ".join(capsys.readouterr().out.split())
    assert run(["experiment", str(write(here, tune=["optim.kind"])), "--no-measure"]) == 2
    assert "tune: optim.kind is 'adamw' there" in capsys.readouterr().err, "before the search of the rate, not after"


@pytest.mark.parametrize(("gap", "seeds"), [(0.2, 3), (0.0, 5)])
def test_a_design_with_looks_adds_seeds_only_while_nothing_is_told(
    here: Path, trainer: Trainer, gap: float, seeds: int
) -> None:
    trainer.gap = gap
    assert run(["experiment", str(write(here, seeds=[3, 5])), "--run"]) == 0
    assert trainer.ran == 2 * seeds
    level = read_outcome()["level"]
    assert level == pytest.approx(0.0478 if seeds == 5 else 0.0147, abs=0.01) and level < 0.05


def test_runs_that_diverge_are_part_of_the_verdict(here: Path, capsys, trainer: Trainer) -> None:
    trainer.gap = math.nan
    assert run(["experiment", str(write(here, seeds=4)), "--run"]) == 0
    (finding,) = read_outcome()["findings"]
    assert finding["found"] == "worse" and finding["diverged"] == [4, 0]
    assert "4 of 4 runs diverged, 0 of 4 of many heads" in capsys.readouterr().out
    ran = trainer.ran
    assert run(["experiment", str(write(here, seeds=4)), "--run"]) == 0 and trainer.ran == ran


def test_a_plan_says_which_effect_of_the_source_it_cannot_see(here: Path, capsys) -> None:
    expected = {"arm": "one head", "against": "many heads", "verdict": "worse", "effect": 0.01}
    file = write(here, sigma=0.02, expect=[expected])
    assert run(["experiment", str(file), "--no-measure"]) == 0
    said = capsys.readouterr()
    assert "one head" in said.out
    assert (
        "the published effect is +0.01, and this design detects 0.065 or more (34 seeds would detect it)"
        in said.out + said.err
    )
    assert run(["experiment", str(file), "--no-measure", "--json", "--seeds", "40"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["cannot_see"] == []
    assert planned["arms"][0]["elementwise"] > planned["arms"][1]["elementwise"], "keys of one head are rotated"
    assert run(["experiment", str(file), "--no-measure", "--json", "--sigma", "0.002"]) == 0
    assert json.loads(capsys.readouterr().out)["cannot_see"] == [], "with a tenth of the file's noise"
    wider = {"arm": "one head", "against": "many heads", "metric": "lr window", "verdict": "better"}
    both = write(here, sigma=0.02, tune=True, expect=[expected, wider])
    assert run(["experiment", str(both), "--no-measure", "--json", "--seeds", "40"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["cannot_see"]
    assert f"({count_seeds(0.01, 0.02, 0.025)} seeds would detect it)" in line, "at 2.5 %, as two verdicts are expected"


def test_of_arms_expected_to_be_equivalent_a_plan_looks_for_the_margin_not_for_a_smaller_effect() -> None:
    expected = {"arm": "one head", "against": "many heads", "verdict": "equivalent", "effect": 0.001}
    made = Experiment.model_validate({"arms": ARMS, "margin": 0.05, "expect": [expected]})
    (line,) = list_blind(made, cast(Outlook, SimpleNamespace(comparisons=1, sigma=0.05, seeds=3)))
    assert "the margin is 0.05, and this design detects" in line


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["--arm", "a=", "--arm", "b="], "arms: b is the same run as a (one of them)"),
        (["--arm", "=attention=mqa"], "arm: is NAME=OVERRIDES, found '=attention=mqa'"),
        (["--arm", "model.n_layers=1"], "arm: 'model.n_layers=1' has no name (--arm NAME=model.n_layers=1)"),
        (["--seeds", "many", "--arm", "a="], "seeds: is a number or several, found 'many'"),
        (
            ["--sigma", "-1", "--arm", "a=", "--arm", "b=seed=1"],
            "sigma: is a number above 0, found -1 (--sigma 0.01, say)",
        ),
        (
            ["--margin", "0", "--arm", "a=", "--arm", "b=seed=1"],
            "margin: is a number above 0, found 0 (--margin 0.01, say)",
        ),
        ([], "experiment: names no arms, found 'model=llama-tiny'"),
    ],
)
def test_flags_that_make_no_experiment_cost_a_line(here: Path, refused, asked: list[str], line: str) -> None:
    assert refused("experiment", *SHARED, *asked)[0].startswith(line)
    (line,) = refused("experiment", "model=none.yaml", "--arm", "a=", "--arm", "b=steps=3")
    assert line == "none.yaml: no such file", "a model's file is not the experiment's"


def test_a_word_names_the_probe_of_an_experiment(here: Path) -> None:
    arms = {"plain": [], "short": ["n_layers=1"]}
    node = {"probe": "mqar", "arms": arms, "metric": "reach", "higher": True}
    (here / "recall.yaml").write_text(yaml.safe_dump(node))
    made = read_recipe(here / "recall.yaml")
    assert made.form(False).probe == made.form(True).probe == Probing(name="mqar")


def test_a_file_that_makes_no_experiment_costs_a_line(here: Path, refused) -> None:
    file = write(here, expect=[{"arm": "one head", "against": "many heads", "verdict": "equivalent"}])
    assert "equivalent needs a margin" in refused("experiment", str(file))[0]
    assert "increase" in refused("experiment", str(write(here, seeds=[5, 3])))[0]
    worse = {"arm": "one head", "against": "many heads", "verdict": "worse", "effect": -0.01}
    line = refused("experiment", str(write(here, expect=[worse])))[0]
    assert "effect: is -0.01, and worse is a higher val_loss (+0.01, or the other verdict)" in line
    assert "there is no arm 'none'" in refused("experiment", str(write(here, baseline="none")))[0]
    assert refused("experiment", str(write(here)), "--report") == ["sweeps/experiments/heads: no run has begun (--run)"]
    (line,) = refused("experiment", str(write(here, expect=[{"arm": "one head", "verdict": "better"}])))
    assert line.endswith("expect.0: against: is missing (the arm with which this one is compared)")
    wider = {"arm": "one head", "against": "many heads", "metric": "lr window", "verdict": "better"}
    (line,) = refused("experiment", str(write(here, expect=[wider])))
    assert line.startswith(f"{here / 'heads.yaml'}:") and "is measured by the search (add tune: true)" in line


def test_a_model_is_found_beside_the_file_of_its_experiment(here: Path, refused) -> None:
    (here / "sub").mkdir()
    file = write(here / "sub", shared="model=own.yaml steps=2", arms={"plain": None, "own": ["model=own.yaml"]})
    assert refused("experiment", str(file)) == [
        f"{file}:5: shared: model=own.yaml: no such file, nor beside heads.yaml",
        f"{file}:3: arms.own: model=own.yaml: no such file, nor beside heads.yaml",
    ]
    beside = file.with_name("own.yaml")
    beside.write_text("d_model: 64\n")
    made = read_recipe(file)
    assert made.shared == [f"model={beside}", "steps=2"] and made.arms == {"plain": [], "own": [f"model={beside}"]}
    Path("own.yaml").write_text("d_model: 32\n")
    assert read_recipe(file).shared == ["model=own.yaml", "steps=2"], "the working directory's comes first"


def test_python_runs_an_experiment_as_the_verb_does(here: Path, trainer: Trainer) -> None:
    trainer.gap = 0.1
    found = zoo.experiment({"arms": ARMS, "shared": SHARED, "seeds": 3}, "by-python")
    assert [(each.arm, each.found) for each in found.findings] == [("one head", "better")]
    assert zoo.experiment(write(here), "by-python", train=False).findings == found.findings and trainer.ran == 6
