"""Sweeps by the hash of their jobs: equal configs are one job, and a sweep that goes on runs only what is missing."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import zoo.jobs.train
from support.command_lines import ROOT, TINY, list_job_folders
from zoo import runs
from zoo.analysis.verdict.power import compute_power, find_smallest_effect
from zoo.analysis.verdict.student import student_quantile
from zoo.cli import run
from zoo.cli.observing import JobTable, watch_jobs
from zoo.costs import Setup, price
from zoo.errors import ZooError
from zoo.jobs.pinning import count_cores, count_workers
from zoo.jobs.plan import LaunchPlan, plan_launch
from zoo.jobs.sweep import SweepPoint, drop_duplicates
from zoo.report.arms import name_arms
from zoo.report.history import RunRecord
from zoo.report.progress import Show
from zoo.run.machine_memory import begin_peak_memory, read_peak_since, release_memory

SWEEP = "hydra.sweep.dir=sweep"


def points(*overrides: str) -> list[SweepPoint]:
    with plan_launch([*TINY, *overrides], sweeps=True) as plan:
        return plan.list_points()


def read_jobs(folder: Path = Path("sweep")) -> dict[str, dict]:
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def results(folder: Path = Path("sweep")) -> list[dict]:
    return [json.loads((each / "result.json").read_text()) for each in list_job_folders(folder)]


def test_jobs_that_train_the_same_have_one_name_however_they_are_written(here: Path) -> None:
    (here / "same.yaml").write_text("defaults: [/model/llama-tiny@_here_]\nabout: {title: Another title}\n")
    same = [
        *points("optim.lr=1e-3,0.001,10e-4"),
        *points("optim.lr=1e-3", "log_every=2,1", "logger=none", "keep=3", "hydra.job.name=x"),
        *points("optim.lr=1e-3", "model.rope_theta=10000.0", "data.path=./text.txt"),
        *points("optim.lr=1e-3", "model=same.yaml"),
    ]
    assert len({each.name for each in same}) == 1
    kept, dropped = drop_duplicates(same)
    assert len(kept) == 1 and len(dropped) == len(same) - 1


def test_jobs_that_train_anything_else_have_names_of_their_own(here: Path) -> None:
    others = ["seed=1", "optim.lr=3e-3", "model.d_ff=64", "attention=mqa", "data.max_bytes=1000", "dropout={ffn:0.1}"]
    made = [each for word in ("seed=0", *others) for each in points(word)]
    assert len({each.name for each in made}) == len(made)


def test_a_range_of_seeds_crosses_with_axes(here: Path) -> None:
    jobs = points("attention=mha,gqa,mqa", "position=rope,alibi", "seed=range(3)")
    assert [each.seed for each in jobs] == [0, 1, 2] * 6
    arms = name_arms([each.typed for each in jobs])
    assert list(dict.fromkeys(arms)) == [
        f"attention={attention} position={position}"
        for attention in ("mha", "gqa", "mqa")
        for position in ("rope", "alibi")
    ]


@pytest.mark.slow
def test_a_sweep_that_is_widened_runs_what_is_new(here: Path, capsys) -> None:
    assert run(["train", "-m", *TINY, SWEEP, "attention=gqa", "optim.lr=1e-3,0.001"]) == 0
    first = {each: (each / "result.json").stat().st_mtime_ns for each in list_job_folders(Path("sweep"))}
    said = capsys.readouterr()
    assert len(first) == 1 and said.err.startswith("1 point is the same run as another, and run once: ")
    (Path("sweep") / "0a0a0a0a0a").mkdir()  # of another sweep: it is left alone
    assert run(["train", "-m", *TINY, SWEEP, "attention=gqa,mqa", "optim.lr=1e-3", "seed=range(2)"]) == 0
    said = capsys.readouterr()
    assert "sweep: of 4 jobs, 1 done, 3 to start" in said.err
    assert said.out.count(" done") == 4
    assert {each: (each / "result.json").stat().st_mtime_ns for each in first} == first
    jobs = read_jobs()
    assert [(job["arm"], job["seed"]) for job in jobs.values()] == [
        ("attention=gqa", 0),
        ("attention=gqa", 1),
        ("attention=mqa", 0),
        ("attention=mqa", 1),
    ]
    assert list(next(iter(jobs.values()))["overrides"]) == [*TINY, "attention=gqa", "optim.lr=0.001"]
    assert not list((Path("sweep") / "0a0a0a0a0a").iterdir())
    assert run(["report", "sweep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline"] == "attention=gqa"


@pytest.mark.slow
def test_a_job_that_failed_runs_again_and_one_that_lost_its_outcome_goes_on(here: Path, capsys, monkeypatch) -> None:
    train = zoo.jobs.train.fit

    def fit(run):
        if run.settings.optim.lr > 1e-3:
            raise ZooError("the disk is gone")
        return train(run)

    monkeypatch.setattr("zoo.jobs.train.fit", fit)
    asked = ["train", "-m", *TINY, SWEEP, "optim.lr=1e-3,2e-3", "steps=3"]
    assert run(asked) == 1
    whole, _ = list_job_folders(Path("sweep"))
    loss = json.loads((whole / "result.json").read_text())["val_loss"]
    (whole / "result.json").unlink()  # as a kill after the last checkpoint
    capsys.readouterr()
    assert run(asked) == 1
    assert "of 2 jobs, 1 to resume, 1 to start" in capsys.readouterr().err
    assert [each["status"] for each in results()] == ["done", "failed"]
    assert results()[0]["val_loss"] == loss
    with runs.locked(list_job_folders(Path("sweep"))[1], print):
        assert run(asked) == 2
    assert "another process is training in it" in capsys.readouterr().err


def test_a_sweep_needs_a_folder_of_its_own_and_names_its_jobs(here: Path, refused) -> None:
    Path("run/checkpoints").mkdir(parents=True)
    assert refused("train", "-m", *TINY, "hydra.sweep.dir=run", "seed=0,1")[0].startswith("run: has a run in it")
    (line,) = refused("train", "-m", *TINY, "hydra.sweep.subdir=x", "seed=0,1")
    assert line == "hydra.sweep.subdir: is not read, jobs are named by the hash of their config (leave it out)"


def test_a_plan_lists_arms_and_what_is_refused_and_leaves_no_trace(here: Path, capsys) -> None:
    points = ["attention=gqa,mqa,nope", "optim.lr=1e-2,0.01", "seed=0,1"]
    asked = ["train", "-m", *TINY, SWEEP, *points, "--plan", "--no-measure", "--sigma", "0.5"]
    assert run(asked) == 0
    out = capsys.readouterr().out
    assert [each.name for each in here.iterdir()] == ["text.txt"]
    assert re.search(r"attention=mqa +2 +[\d.]+ K +[\d.]+ M +[\d.]+ K +[\d.]+ MB\s", out) and "a step" not in out
    assert "4 points are the same run as another, and run once: attention=gqa seed=0;" in " ".join(out.split())
    assert "refused: attention=nope seed=0 and 1 more: attention: no option 'nope'" in " ".join(out.split())
    assert "2 seeds detect a difference of 11.55 σ, 5.77" in out and "Holm" not in out


@pytest.mark.slow
def test_a_plan_prices_what_runs_then_cost(here: Path, capsys) -> None:
    shared = ["train", "-m", *TINY, SWEEP, "optim=muon", "seed=0,1"]
    asked = [*shared, "attention=gqa,mqa,nope", "model.d_ff=256,30000000000", "optim.lr=1e-2,0.01"]
    assert run([*asked, "--plan", "--json", "--sigma", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["arm"], each["seeds"]) for each in found["arms"]] == [
        ("attention=gqa", [0, 1]),
        ("attention=mqa", [0, 1]),
    ]
    faults = {each["overrides"]: " ".join(each["faults"]) for each in found["refused"]}
    assert len(faults) == 8 and len(found["duplicates"]) == 8
    assert sum("attention: no option 'nope'" in why for why in faults.values()) == 4
    assert sum(why.startswith("model: does not fit into memory") for why in faults.values()) == 4
    assert found["seconds"] > 0 and found["power"] == {
        "seeds": 2,
        "smallest_effect": pytest.approx(11.55, abs=0.01),
        "smallest_effect_corrected": pytest.approx(11.55, abs=0.01),
        "comparisons": 1,
        "sigma": 0.5,
    }
    asked = [*shared, "attention=gqa,mqa", "model.d_ff=256", "optim.lr=1e-2"]
    assert run([*asked, "--measure"]) == 0
    assert " ×" in capsys.readouterr().out
    jobs = read_jobs()
    assert {name for each in found["arms"] for name in each["jobs"]} == set(jobs)
    for arm, name in ((each, name) for each in found["arms"] for name in each["jobs"]):
        result, predicted = json.loads(Path("sweep", name, "result.json").read_text()), jobs[name]["predicted"]
        for figure in ("params", "tokens", "flops"):
            assert arm[figure] == predicted[figure] == result[figure]
        step = price(RunRecord(Path("sweep", name)).spec, Setup(optimizer="muon"))["flops"]["optimizer_step"]
        assert predicted["optimizer_flops"] == 2 * step > 0
        assert predicted["seconds"] > 0 and result["wall_seconds"] > result["seconds"]
        assert sys.platform != "linux" or result["peak_memory"] > 0
    assert run([*asked, "--plan", "--sigma", "sweep"]) == 0
    out = capsys.readouterr().out
    assert "2 (2 done)" in out and "all are done" in out and "in loss" in out


def test_options_of_a_plan_are_refused_elsewhere(here: Path, refused) -> None:
    assert refused("train", *TINY, "--plan") == ["plan: is an option of a sweep (-m)"]
    assert refused("train", "-m", *TINY, "seed=0,1", "--sigma", "1") == ["sigma: is an option of a plan (--plan)"]
    (line,) = refused("train", "-m", *TINY, "seed=0,1", "--plan", "--sigma", "x", "--no-measure")
    assert line == "sigma: is a deviation in loss or the folder of a sweep, found 'x' (--sigma 0.01, say)"


@pytest.mark.parametrize(("n", "effect"), [(2, 5.0), (3, 3.3), (10, 1.0), (34, 0.5)])
def test_the_power_of_pairs_is_that_of_simulated_ones(n: int, effect: float) -> None:
    drawn = np.random.default_rng(n).normal(effect, 1, (100_000, n))
    t = np.abs(drawn.mean(1)) / (drawn.std(1, ddof=1) / math.sqrt(n))
    told = float((t > student_quantile(0.975, n - 1)).mean())
    assert compute_power(effect, n) == pytest.approx(told, abs=0.006)
    assert find_smallest_effect(n, power=compute_power(effect, n)) == pytest.approx(effect, rel=1e-3)


def test_the_power_of_pairs_is_that_of_published_tables() -> None:
    assert compute_power(0.5, 34) == pytest.approx(0.8077775, abs=1e-6)  # statsmodels' TTestPower, G*Power 3.1
    assert find_smallest_effect(1) is None


def test_a_sweep_that_is_interrupted_tells_what_stopped_and_what_never_began(here: Path, capsys, monkeypatch) -> None:
    def stop_in_the_first_job(self: LaunchPlan, folder: Path, jobs: list) -> None:
        (folder / jobs[0].name).mkdir()
        (folder / jobs[0].name / "result.json").write_text('{"status": "stopped", "error": ""}')
        raise KeyboardInterrupt

    monkeypatch.setattr(LaunchPlan, "launch", stop_in_the_first_job)
    assert run(["train", "-m", *TINY, SWEEP, "seed=0,1,2"]) == 130
    out, err = capsys.readouterr()
    assert [line.split()[-1] for line in out.splitlines() if "seed=" in line] == ["stopped", "started", "started"]
    assert out.count("not started") == 2
    assert not re.search(r"^[0-9a-f]{10}: ?$", out + err, re.MULTILINE)  # a hash without a word


@pytest.mark.skipif(sys.platform != "linux", reason="no other system begins a peak anew")
def test_the_peak_of_memory_is_begun_anew() -> None:
    for size in (64 << 20, 16 << 20):
        release_memory()
        before = begin_peak_memory(torch.device("cpu"))
        held = torch.ones(size // 4)
        del held
        assert size - (4 << 20) <= read_peak_since(torch.device("cpu"), before) <= size + (16 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system begins a peak anew")
def test_the_peak_of_memory_leaves_out_the_pages_of_mapped_files_such_as_libraries() -> None:
    before = begin_peak_memory(torch.device("cpu"))
    library = np.memmap(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so", mode="r")
    assert library[: 64 << 20 : 4096].sum() > 0  # reads a byte of each page
    assert read_peak_since(torch.device("cpu"), before) < 16 << 20


def test_a_terminal_shows_arms_by_seeds_as_far_as_their_folders_say(here: Path) -> None:
    jobs = points("attention=gqa,mqa", "seed=0,1,2", "steps=200")
    table = JobTable(here, jobs)
    _, starts, runs_on, done, failed, again = (here / each.name for each in jobs)
    for each in (starts, runs_on, done, failed, again):
        each.mkdir()
    for each in (failed, again):
        (each / "result.json").write_text('{"status": "failed"}')
    (done / "result.json").write_text('{"status": "done", "val_loss": 2.34567}')
    for each in (runs_on, again):
        (each / "metrics.jsonl").write_text('{"step": 49, "loss": 9}\n{"step": 50, "loss": 4.5}\n{"step": 51, "lo')
    os.utime(again / "result.json", (1, 1))
    found = [table.describe(each) for each in jobs]
    assert found == ["waits", "starts", "25% 4.500", "2.3457", "failed", "25% 4.500"]
    console = Console(force_terminal=True, file=io.StringIO(), width=100)
    with watch_jobs(here, jobs, console):
        show = Show(200, Console(force_terminal=True, file=io.StringIO()))
        with show:
            show.step(1, {"loss": 1.0}, 1.0)
            show.evaluation(1, 2.0, None)
            show.say("a warning")
        assert show.console.file.getvalue() == "a warning\n"
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert re.search(r"arm +seed 0 +seed 1 +seed 2", shown)
    assert re.search(r"attention=mqa +2\.3457 +failed +25% 4\.500", shown)
    plain = Console(file=io.StringIO())
    with watch_jobs(here, jobs, plain):
        Show(200, plain).evaluation(1, 2.0, None)
        (runs_on / "result.json").write_text('{"status": "done", "val_loss": 2.5}')
        os.utime(runs_on / "metrics.jsonl", (1, 1))
    lines = plain.file.getvalue().splitlines()
    assert lines[0].startswith("step 1/200  validation loss 2.0000")
    assert re.fullmatch(r"run 3 of 6: attention=gqa, seed 2: 2\.5000; about .*s left", lines[1])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system holds no process to cores")
def test_workers_have_cores_and_a_gpu_of_their_own(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from zoo.jobs.pinning import pin_worker\n"
    code += "pin_worker(Path(sys.argv[1]), int(sys.argv[2]))\n"
    code += "print(sorted(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    cores = sorted(os.sched_getaffinity(0))
    workers = len(cores)
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,7"}
    begin = partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    began = [begin([*command, str(workers)]) for _ in range(workers + 1)]
    found = [each.stdout.readline().strip() for each in began]
    for each in began:
        each.communicate("\n")
    free = f"{cores} 4,7"
    assert free in found  # of one more than there are cores for
    if workers == 1:
        assert set(found) == {free}
        return
    found.remove(free)
    assert sorted(found) == sorted(f"[{core}] {(4, 7)[at % 2]}" for at, core in enumerate(cores))


def test_joblibs_workers_are_counted_as_joblib_does() -> None:
    effective_n_jobs = pytest.importorskip("joblib").effective_n_jobs
    joblib, cores = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", count_cores()
    for jobs, workers in ((3, 3), (-1, cores), (1, 1), (-cores, 1)):
        assert count_workers({"_target_": joblib, "n_jobs": jobs}) == workers == effective_n_jobs(jobs)
    assert count_workers({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}) is None


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_losses_of_one_that_was_not(here: Path) -> None:
    Path("text.txt").write_text("".join(f"line {n} of some {n * n % 97} words\n" for n in range(4000)))
    asked = [sys.executable, "-m", "zoo", "train", "-m", *TINY, "steps=400", "save_every=20", "seed=0,1,2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*asked, "hydra.sweep.dir=whole"], check=True, capture_output=True, env=environment)
    (first, second, third) = list_job_folders(Path("whole"))
    process = subprocess.Popen([*asked, SWEEP], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    until = time.monotonic() + 120
    while not (Path("sweep") / second.name / "checkpoints" / "latest").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert runs.read_result(Path("sweep") / first.name / "result.json")["status"] == "done"
    assert not runs.read_result(Path("sweep") / second.name / "result.json")
    assert not (Path("sweep") / third.name).exists()
    done = subprocess.run([*asked, SWEEP], check=True, capture_output=True, text=True, env=environment)
    assert "of 3 jobs, 1 done, 1 to resume, 1 to start" in done.stderr and "goes on after step" in done.stderr
    assert [each["val_loss"] for each in results()] == [each["val_loss"] for each in results(Path("whole"))]
    assert (Path("sweep") / second.name / "metrics.jsonl").read_text().count("\n") == 401
