"""`zoo train` and `zoo generate` as their users meet them: what a run leaves behind, and how it ends."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import zoo
from support.command_lines import TINY, list_job_folders, zoo_process
from zoo.cli import run
from zoo.paths import conf_dir


def test_a_run_leaves_its_record_and_is_what_generate_goes_on_from(here: Path, capsys) -> None:
    assert run(["train", *TINY, "attention=mqa", "model=gpt-tiny"]) == 0
    last = (here / "runs" / "last").read_text().strip()
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-gpt-tiny", last)
    assert "attention@model.attention=mqa" in yaml.safe_load((here / last / ".hydra" / "overrides.yaml").read_text())
    result = json.loads((here / last / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("done", 2)
    capsys.readouterr()
    assert run(["generate", "--prompt", "word", "--max-new-tokens", "5", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert run(["generate", "--prompt", "word", "--max-new-tokens", "5", "--seed", "1", "--checkpoint", last]) == 0
    assert capsys.readouterr().out == first
    assert run(["train", "--resume", last, "steps=3"]) == 0
    assert json.loads((here / last / "result.json").read_text())["steps"] == 3


def test_a_run_has_a_log_once_something_is_logged(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    assert run(["train", *TINY, "hydra.run.dir=silent"]) == 0
    assert not (here / "silent" / "train.log").exists()
    monkeypatch.setattr("zoo.jobs.train.describe_run", lambda run: logging.getLogger("x").warning("heed"))
    assert run(["train", *TINY, "hydra.run.dir=warned"]) == 0
    assert "[x][WARNING] - heed" in (here / "warned" / "train.log").read_text()


def test_generate_reads_standard_input(here: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    assert run(["train", *TINY]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("word1 "))
    assert run(["generate", "--prompt", "-", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    piped = capsys.readouterr().out
    assert run(["generate", "--prompt", "word1 ", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == piped


def test_a_users_own_model_trains_and_the_run_has_its_name(here: Path) -> None:
    (here / "mine.yaml").write_text("defaults: [/model/llama-tiny@_here_]\nposition: alibi\nd_ff: 64\n")
    assert run(["train", *TINY, "model=mine.yaml", "attention=mqa"]) == 0
    (folder,) = (here / "runs").glob("*/*-mine")
    composed = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["model"]
    assert (composed["position"]["kind"], composed["attention"]["n_kv_heads"], composed["d_ff"]) == ("alibi", 1, 64)


def test_two_runs_that_start_in_the_same_second_do_not_share_a_folder(here: Path) -> None:
    (here / "exp.yaml").write_text("hydra: {run: {dir: out/run}}\nseed: 3\n")
    assert run(["train", "-c", "exp.yaml", "--trust", *TINY]) == 0
    assert run(["train", "-c", "exp.yaml", "--trust", *TINY]) == 0
    assert sorted(path.name for path in (here / "out").iterdir()) == ["run", "run-2"]
    assert yaml.safe_load((here / "out" / "run" / "config.yaml").read_text())["seed"] == 3


def test_a_folder_that_has_a_run_is_refused(here: Path, refused, capsys) -> None:
    assert run(["train", *TINY, "hydra.run.dir=mine"]) == 0
    capsys.readouterr()
    (line,) = refused("train", *TINY, "hydra.run.dir=mine")
    assert line.startswith("mine: has a run in it")


def test_a_fault_of_the_model_as_a_whole_names_it_once(here: Path, refused) -> None:
    (line,) = refused("train", *TINY, "attention=gated_delta", "position=rope")
    assert line.startswith("model: position 'rope' acts inside attention")


def test_input_that_training_refuses_leaves_no_folder(here: Path, capsys) -> None:
    assert run(["train", *TINY, "data.path=nope.txt"]) == 2
    assert "data.path: no such file or folder" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["text.txt"]


@pytest.mark.slow
def test_a_job_that_diverges_is_an_outcome_beside_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = ["model=gpt-tiny,llama-tiny", "optim.lr=1e-3,1e30"]
    assert run(["train", "-m", *TINY, *jobs, "steps=3", "skip_nonfinite=0"]) == 0
    (sweep,) = (here / "sweeps").glob("*/*")
    folders = list_job_folders(sweep)
    results = [json.loads((each / "result.json").read_text()) for each in folders]
    assert [result["status"] for result in results] == ["done", "diverged", "done", "diverged"]
    assert [len(result["overrides"]) for result in results] == [len(TINY) + 3] * 4
    out, err = capsys.readouterr()
    assert re.search(rf"{folders[0].name} +model=gpt-tiny optim\.lr=0\.001 +\d\.\d{{4}} +[\d.]+ K +.* done", out)
    assert re.search(rf"{folders[3].name} +model=llama-tiny optim\.lr=1e\+30 +.* diverged", out)
    assert "optim.lr=1e+30, seed 0: diverged" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_joblib_runs_the_jobs_of_a_sweep_that_the_config_asks_for(here: Path, capsys) -> None:
    (here / "sweep.yaml").write_text(
        "defaults: [/config, override /model: mixtral-tiny]\n"
        "hydra: {sweeper: {params: {ffn: 'moe,gated', model.n_experts: '2', optim.lr: '1e-3,1e30'}}}\n"
    )
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optim.lr=2e-3"]
    assert run(["train", "-m", "-c", "sweep.yaml", "--trust", *TINY, *options]) == 0
    (sweep,) = (here / "sweeps").glob("*/*")
    params = [json.loads((each / "result.json").read_text())["params"] for each in list_job_folders(sweep)]
    assert len(params) == 2 and params[0] > params[1]


def test_a_sweep_may_set_what_the_default_model_has_not(here: Path) -> None:
    (here / "bare.yaml").write_text(
        "defaults: [/model/llama-tiny@_here_]\nlayers: {local: {window: 4}}\npattern: [local]\n"
    )
    args = ["model=bare.yaml", "layers.local.window=3,5", "--cfg", "job"]
    assert run(["train", "-m", *TINY, *[arg.replace("layers.", "model.layers.") for arg in args]]) == 0


@pytest.mark.parametrize("info", ["defaults-tree", "searchpath"])
def test_hydra_tells_what_it_knows(info: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = zoo_process("train", "attention=mqa", "--info", info)
    assert done.returncode == 0
    assert ("attention@model.attention: mqa" if info == "defaults-tree" else str(conf_dir())) in done.stdout


def test_training_from_python_gives_the_result(here: Path) -> None:
    result = zoo.train("gpt-tiny", TINY)
    assert result["steps"] == 2
    assert (here / "runs" / "last").exists()
