"""Runs that are killed, hurt and stopped end with the files of the run that nothing happened to, byte for byte."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo import cli, runs
from zoo.checkpoint import publish as publishing
from zoo.checkpoint import store
from zoo.errors import Terminated
from zoo.jobs.train import resume_run, start_run
from zoo.training import log, loop
from zoo.training.objective import NextToken

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes, and reads /proc")


def live(folder: Path, **options) -> dict:
    """Let runs live many lives (tests/support/killed_runs.py). Returns the report."""
    command = [sys.executable, "-m", "support.killed_runs", str(folder), json.dumps(options)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


# ---------------------------------------------------------------- killed, hurt, stopped


def test_a_run_that_is_killed_in_its_saves_and_anywhere_ends_as_if_it_was_not(tmp_path):
    report = live(tmp_path / "lives", kills=2)
    assert report["kills"] == 2 and report["in_a_save"] >= 1 and report["runs"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["ema=0.9", "optim=muon"]], ids=["adamw", "muon with an average"])
def test_two_hundred_kills_lose_nothing(tmp_path, overrides):
    report = live(tmp_path / "lives", kills=200, seed=1, overrides=overrides)
    print(report)
    assert report["kills"] == 200 and report["in_a_save"] >= 50
    assert {"write", "fsync", "rename", "open", "mkdir", "remove"} <= report["met"].keys()


@pytest.mark.slow
def test_an_error_of_the_disk_ends_a_run_in_one_line_and_loses_nothing(tmp_path):
    report = live(tmp_path / "lives", errors=["ENOSPC", "EIO"], turns=[1, 60, 55], everywhere=True)
    assert all(report[name] for name in ("ENOSPC", "EIO"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS"])
@pytest.mark.parametrize("everywhere", [True, False], ids=["anywhere", "in saves"])
def test_an_error_at_any_write_fsync_or_rename_loses_nothing(tmp_path, name, everywhere):
    report = live(tmp_path / "lives", errors=[name], turns=[1, 100], everywhere=everywhere)
    assert report[name] >= 50


@pytest.mark.slow
def test_a_run_that_sigterm_asks_to_stop_loses_nothing_wherever_it_is(tmp_path):
    assert live(tmp_path / "lives", stops=[1, 60, 29])["stops"] >= 2


@pytest.mark.slow
def test_a_run_that_sigterm_asks_to_stop_at_any_event_loses_nothing(tmp_path):
    assert live(tmp_path / "lives", stops=[1, 100])["stops"] >= 50


@pytest.mark.parametrize("step", [3, 6], ids=["in the middle", "after the last step"])
def test_sigterm_in_an_evaluation_saves_at_once_and_the_evaluation_comes_later(tmp_path, corpus, monkeypatch, step):
    config = compose_run(corpus, "save_every=null")
    start_run(config, tmp_path / "whole")
    loss, evaluated = NextToken.loss, []

    def stop_in_the_evaluation(self, model, *args, **options):
        if not model.training:
            evaluated.append(1)
            if len(evaluated) == (1 if step == 3 else 3):  # of two batches at each of two evaluations
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, model, *args, **options)

    monkeypatch.setattr(NextToken, "loss", stop_in_the_evaluation)
    with pytest.raises(Terminated):
        start_run(config, tmp_path / "parts")
    monkeypatch.undo()
    assert len(evaluated) == (1 if step == 3 else 3)
    counters = store.read_counters(runs.find(tmp_path / "parts"))
    assert (counters["step"], counters["evaluation_due"]) == (step, True)
    resume_run(tmp_path / "parts")
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    newest = [read_folder(runs.find(tmp_path / name)) for name in ("parts", "whole")]
    assert newest[0] == newest[1]


@pytest.mark.parametrize("launched", [True, False])
def test_a_sigterm_that_slurm_sends_and_torchrun_passes_on_counts_once(launched, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    said = []
    run = SimpleNamespace(asked=None, show=SimpleNamespace(say=said.append))
    with loop.stop_on_signals(run):
        signal.raise_signal(signal.SIGTERM)
        with nullcontext() if launched else pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert run.asked is signal.SIGTERM and len(said) == 1
    assert ("Ctrl-C or SIGTERM" in said[0]) == (not launched)


@pytest.mark.parametrize("error, code", [(Terminated(), 0), (KeyboardInterrupt(), 130)])
def test_the_command_line_ends_with_0_where_sigterm_asked_and_with_130_at_ctrl_c(monkeypatch, capfd, error, code):
    def interrupted(*args, **options):
        raise error

    monkeypatch.setattr("zoo.cli.train._resume", interrupted)
    assert cli.run(["train", "--resume", "x"]) == code
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- what publication promises


def test_a_run_killed_before_its_outcome_was_written_writes_it_when_it_is_resumed(tmp_path, corpus):
    start_run(compose_run(corpus), tmp_path / "run")
    whole = json.loads((tmp_path / "run/result.json").read_text())
    (tmp_path / "run/result.json").unlink()
    resume_run(tmp_path / "run")
    found = json.loads((tmp_path / "run/result.json").read_text())
    clocked = ("peak", "mfu", "peak_memory")  # no step was trained, so none had a speed or took memory
    assert {k: v for k, v in found.items() if k not in clocked} == {k: v for k, v in whole.items() if k not in clocked}


def test_a_pointer_moves_only_after_the_checkpoint_has_its_name_and_old_ones_go_only_then(tmp_path, monkeypatch):
    seen = []
    root = tmp_path / "run/checkpoints"
    for name in ("point", "retire"):
        work = getattr(publishing, name)

        def noted(*args, name=name, work=work):
            seen.append((name, sorted(each.name for each in root.glob("[!.]*")), list(root.glob(".*"))))
            work(*args)

        monkeypatch.setattr(publishing, name, noted)
    for step in ("step-000001", "step-000002"):
        publishing.publish(root / step, lambda draft: (draft / "weights").write_text("x"), keeps=lambda earlier: [])
    assert seen == [
        ("point", ["step-000001"], []),
        ("retire", ["latest", "step-000001"], []),
        ("point", ["latest", "step-000001", "step-000002"], []),
        ("retire", ["latest", "step-000001", "step-000002"], []),
    ]
    assert sorted(each.name for each in root.iterdir()) == ["latest", "step-000002"]


def test_records_remember_that_a_line_could_not_be_written(tmp_path):
    records = log.RunLog(tmp_path)
    records.write_line(step=1, tokens=1)
    assert not records.failed
    metrics = records._files[log.METRICS]
    os.dup2(full := os.open("/dev/full", os.O_WRONLY), metrics.fileno())
    with pytest.raises(OSError, match="No space left"):
        records.write_line(step=2, tokens=2)
    assert records.failed
    os.close(full)
    records.close()  # the disk is full at this as well
