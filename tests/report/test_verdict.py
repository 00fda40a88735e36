"""`zoo report` reads real runs, and says what they show."""

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.command_lines import list_job_folders
from support.parallel_runs import BASE, SMALL, here  # noqa: F401  (a fixture)
from zoo.analysis.verdict.comparison import Comparison, compare_arms
from zoo.analysis.verdict.score_noise import find_answer_noise
from zoo.cli import run
from zoo.experiments.looking import report_folders
from zoo.report.arms import Arm, group_arms
from zoo.report.history import collect_runs
from zoo.report.verdict_plot import make_figure
from zoo.report.verdicts import Report
from zoo.units import format_p

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
    assert 0 < other["costs"]["elementwise"] < base["costs"]["elementwise"], "keys of fewer heads are rotated"
    assert "elementwise" not in found["pareto"]
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
    for load, compared in ((1.5, True), (5.0, False)):  # of two CPUs
        for job, seconds in zip(jobs, (1.0, 1.0, 2.0, 2.0), strict=True):
            edit_json(job / "result.json", seconds=seconds)
            (job / "environment.json").write_text(json.dumps([{"threads": "1 of 2 CPUs", "load": load}]))
        capsys.readouterr()
        assert run(["report", str(sweep), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert ("seconds" in found["pareto"]) is compared
        assert run(["report", str(sweep)]) == 0
        assert ("seconds are not compared" in capsys.readouterr().out) is not compared
    judge_one_seed(sweep, jobs, capsys)


def judge_one_seed(sweep, jobs, capsys):
    """With one seed an arm cannot be judged, and none is ringed."""
    for job in jobs[1::2]:
        shutil.rmtree(job)
    capsys.readouterr()
    assert run(["report", str(sweep)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot be judged (n = 1: one seed has no spread)" in said and "inconclusive" not in said
    assert run(["report", str(sweep), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pareto"] == {}
    report = Report.make(group_arms(collect_runs([sweep]))[0], None, "val_loss")
    drawn = [axes for axes in make_figure(report).axes if "cannot be judged" in axes.get_title()]
    assert drawn and not any(axes.collections for axes in drawn)


def edit_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("seeds", "level", "lines"), [(6, 0.05, 1), (6, 0.0076, 0), (4, 0.0076, 1)])
def test_a_second_reading_is_shown_where_it_differs_at_the_level_of_the_look_or_seeds_are_few(seeds, level, lines):
    arms = [Arm(name, {}) for name in ("one", "other")]
    found = Comparison(seeds, -0.1, None, 0.2, 0.2, "inconclusive", None, pooled=0.03)
    report = Report(arms, arms[0], "train_loss", {"other": found}, level=level)
    assert report.second_readings() == ["with the variance pooled over all arms (uncorrected): other p = 0.030"] * lines


@pytest.mark.parametrize(("common", "doubt"), [(0.3, ""), (-0.09, ": pairing does not help")])
def test_the_deviation_of_pairs_stands_beside_that_of_unpaired_runs(common, doubt):
    drawn = np.random.default_rng(0).normal(0, 0.1, (3, 6))
    base, own = drawn[0] + common * drawn[2] / 0.1, drawn[1] + abs(common) * drawn[2] / 0.1
    losses = {"one": dict(enumerate(base.tolist())), "other": dict(enumerate(own.tolist()))}
    arms = [Arm(name, {}) for name in losses]
    report = Report(arms, arms[0], "train_loss", compare_arms(losses, "one"))
    apart = math.sqrt(base.var(ddof=1) + own.var(ddof=1))
    (line,) = report.second_readings()
    assert line.endswith(f"unpaired runs: other {(own - base).std(ddof=1):.2g} and {apart:.2g}{doubt}")


@pytest.mark.parametrize(("seeds", "said"), [(10, "p < 0.001"), (3, "p = 0.100")])
def test_fishers_exact_p_of_a_divergence_is_never_zero(seeds, said):
    """All ways of choosing the runs that diverge are equally probable: 2 of 20 over 10, 2 of 6 over 3."""
    arms = [Arm(name, dict.fromkeys(range(seeds))) for name in ("one", "other")]
    losses = {"one": {seed: 2 + seed / 100 for seed in range(seeds)}, "other": dict.fromkeys(range(seeds), math.inf)}
    report = Report(arms, arms[0], "train_loss", compare_arms(losses, "one"))
    assert f"{seeds} of {seeds} runs diverged, 0 of {seeds} of one (Fisher's exact {said})" in report.sentence(arms[1])


def make_arm(name: str, rights: list[int], answers: int = 200) -> Arm:
    """An arm of runs that classify: so many rows are right with each seed. They are validated in two pieces."""
    pieces = [[0.1, answers // 4], [0.1, answers - answers // 4]]
    runs = {
        seed: SimpleNamespace(
            status="done",
            search=None,
            outcome={"val_accuracy": right / answers},
            result={"val_pieces": pieces},
            measured={},
        )
        for seed, right in enumerate(rights)
    }
    return Arm(name, runs)


def test_saturated_accuracies_of_runs_have_the_noise_of_their_rows() -> None:
    full, nearly, worse = (make_arm(str(right), [right] * 3) for right in (200, 199, 150))
    assert full.least_noise("val_accuracy") == find_answer_noise([1.0], 200) and not full.least_noise("val_loss").sigma
    found = Report.make([full, nearly, worse], None, "val_accuracy").found
    assert found["199"].verdict == "inconclusive" and found["199"].p > 0.1, "a row in 200, with each of three seeds"
    assert found["150"].p < 1e-6
    spread = make_arm("spread", [120, 180, 160])
    (own,) = Report.make([full, spread], None, "val_accuracy").found.values()
    (plain,) = compare_arms({each.name: each.values("val_accuracy") for each in (full, spread)}, full.name).values()
    assert (own.p, own.interval) == (plain.p, plain.interval), "seeds that differ by more have their own spread"


def test_an_arm_of_lower_accuracy_is_worse_and_its_difference_has_the_sign_of_the_accuracy(monkeypatch) -> None:
    arms = [make_arm("right", [200, 198, 199]), make_arm("wrong", [150, 149, 151])]
    monkeypatch.setattr("zoo.experiments.looking.collect_runs", lambda folders: folders)
    monkeypatch.setattr("zoo.experiments.looking.group_arms", lambda records: (arms, []))
    monkeypatch.setattr("zoo.experiments.looking.note_noise", lambda arm: arm)
    made, _ = report_folders([Path("sweep"), Path("more")], metric="val_accuracy")
    (found,) = made.found.values()
    assert found.verdict == "worse" and found.difference == pytest.approx(-0.245)
    assert found.interval[0] < found.difference < found.interval[1] < 0


def test_a_peak_that_reused_an_earlier_runs_memory_is_not_measured():
    arms = [Arm(name, {}) for name in ("one", "other")]
    report = Report(arms, arms[0], "train_loss", {})
    peaks = {"one": 12_288.0, "other": 4e6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "forecasts", lambda _, arm: {"peak_memory": (peaks[arm.name], 2e6)})
        assert report.forecast_rows() == [["other", "", "", "", "4.00 MB", "2.00 MB", "2.00"]]


@pytest.mark.parametrize("level", [0.05, 0.0476, 0.0076, 0.00009])
def test_a_p_value_reads_as_below_the_level_exactly_if_it_is(level: float) -> None:
    for p in (0.3, 0.0504, 0.05, 0.0497, 0.04999996, 0.0476, 0.04759, 0.0076, 0.00759, 0.0011, 0.0004, 0.00005):
        read = format_p(p, level)
        assert ("<" in read or float(read) < level) == (p < level)
        assert "<" in read or (len(read) >= 5 and float(read) == pytest.approx(p, abs=5e-4))
    assert (format_p(0.0497, 0.05), format_p(0.0371, 0.05), format_p(0.0004, 0.05)) == ("0.0497", "0.037", "< 0.001")
