"""Sweeps: each job is composed by us alone, and Hydra's sweeper, launchers and records get it finished."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle  # of joblib and submitit
import pytest
import torch
from omegaconf import OmegaConf

from zoo import runs
from zoo.compose.composing import TRAINING
from zoo.compose.hydra_engine import RunMode, open_session
from zoo.errors import CheckpointError, ConfigError, FitError
from zoo.jobs.loader import JobLoader
from zoo.jobs.plan import plan_launch


@pytest.fixture
def loader():
    with open_session(loader=JobLoader) as hydra:
        yield hydra.config_loader


def faults(*overrides: str, sweeps: bool = True) -> list[str]:
    with pytest.raises(ConfigError) as caught, plan_launch(overrides, sweeps=sweeps, check=False):
        pass
    return caught.value.faults


def test_a_job_is_what_hydras_own_loader_makes_of_the_translated_overrides(loader: JobLoader) -> None:
    ours = loader.load_configuration("config", ["attention=mqa", "model.bias=true", "hydra.job.name=x"], RunMode.RUN)
    theirs = ["attention@model.attention=mqa", "++model.bias=true", "hydra.job.name=x"]
    with open_session() as hydra:
        expected = hydra.config_loader.load_configuration("config", theirs, RunMode.RUN)
    nodes = [OmegaConf.to_container(each) for each in (ours, expected)]
    for node in nodes:
        del node["hydra"]["callbacks"], node["hydra"]["mode"]
    assert nodes[0] == nodes[1]


def test_a_sweeper_that_proposes_overrides_as_typed_gets_whole_jobs(loader: JobLoader) -> None:
    loader.sweeps = True
    typed = ["model=llama-tiny,gpt-tiny", "model.bias=true", "hydra.sweep.subdir=${hydra.job.override_dirname}"]
    master = loader.load_configuration("config", typed, RunMode.MULTIRUN)
    assert list(master.hydra.overrides.task) == typed[:2]
    jobs = [
        loader.load_sweep_config(master, [f"model={name}", "model.bias=true"]) for name in ("llama-tiny", "gpt-tiny")
    ]
    assert [job.model.bias for job in jobs] == [True, True]
    assert [job.hydra.runtime.choices.model for job in jobs] == ["llama-tiny", "gpt-tiny"]
    assert [job.hydra.sweep.subdir for job in jobs] == [
        "++model.bias=true,model=llama-tiny",
        "model.bias=true,model=gpt-tiny",  # which states it
    ]


def test_a_faulty_job_that_a_sweeper_proposes_is_refused(loader: JobLoader) -> None:
    master = loader.load_configuration("config", ["optim.lr=1e-3,1e-2"], RunMode.MULTIRUN)
    with pytest.raises(ConfigError, match=r"^optim\.lrr: unknown key \(did you mean 'optim\.lr'\?\)$"):
        loader.load_sweep_config(master, ["optim.lrr=1"])


def test_a_worker_gets_a_loader_that_composes_the_same(loader: JobLoader) -> None:
    loader.body = {**TRAINING, "seed": 7}
    copy = cloudpickle.loads(cloudpickle.dumps(loader))  # as joblib and submitit send it
    here, there = (each.load_configuration("config", ["attention=mqa"], RunMode.RUN) for each in (loader, copy))
    assert OmegaConf.to_container(here) == OmegaConf.to_container(there)
    assert there.seed == 7


def test_jobs_that_have_a_key_at_different_places_are_swept_together() -> None:
    """`bias` is stated by the one model, added to the other: Hydra's own composing took one form for all jobs."""
    with plan_launch(["model=gpt2,llama-tiny", "model.bias=true,false"], sweeps=True, check=False) as plan:
        assert [job.cfg.model.bias for job in plan.jobs] == [True, False] * 2


def test_hydras_own_settings_are_not_swept_over() -> None:
    (fault,) = faults("hydra.job.name=a,b")
    assert fault == "hydra.job.name=a,b: Hydra's own settings cannot be swept over (one value each)"


def test_a_search_path_that_nothing_would_search_is_refused() -> None:
    (fault,) = faults("hydra.searchpath=[file:///tmp]", sweeps=False)
    assert fault.startswith("hydra.searchpath: is not read (")


def test_a_variable_that_the_environment_lacks_is_a_fault_in_one_line(loader: JobLoader) -> None:
    with pytest.raises(ConfigError, match=r"^hydra\.job\.env_copy: the environment has no NOT_THERE \(set it\)$"):
        loader.load_configuration("config", ["hydra.job.env_copy=[NOT_THERE]"], RunMode.RUN)


# ---------------------------------------------------------------- the folder of a run


def refuse(*args: object, **options: object) -> None:
    torch.set_num_threads(1)  # as a probe beside a busy program would
    raise FitError("memory: too little of it")


def run_that_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.training.building.build", refuse)
    data = ["data=text", f"data.path={folder / 'text'}", "data.tokenizer.kind=byte", "sample=null"]
    size = ["model.n_layers=1", "steps=1", "batch_size=1", "seq_len=8"]
    (folder / "text").mkdir()
    for number in range(40):
        (folder / "text" / f"{number}.txt").write_text(f"text number {number}")
    overrides = [*data, *size, f"hydra.run.dir={folder / 'run'}", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    with plan_launch(overrides) as plan, pytest.raises(FitError):
        plan.run()


def test_a_run_that_is_refused_when_it_is_built_leaves_no_folder_and_torchs_threads(tmp_path, monkeypatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_that_is_refused(tmp_path, monkeypatch)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [each.name for each in tmp_path.iterdir()] == ["text"]


def test_a_folder_that_another_process_trains_in_is_not_touched(tmp_path) -> None:
    with (
        runs.locked(tmp_path / "run", print),
        plan_launch([f"hydra.run.dir={tmp_path / 'run'}"], check=False) as plan,
        pytest.raises(ConfigError, match="another process is training in it"),
    ):
        plan.run()
    assert [each.name for each in (tmp_path / "run").iterdir()] == [runs.LOCK]


def test_a_run_that_loses_the_race_for_its_folder_writes_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "zoo.jobs.plan._unused", lambda folder, sweeps: folder
    )  # looked before the other process had it
    (tmp_path / "run").mkdir()
    for sweeps, key in ((False, "hydra.run.dir"), (True, "hydra.sweep.dir")):
        with (
            runs.locked(tmp_path / "run", print),
            plan_launch([f"{key}={tmp_path / 'run'}"], sweeps=sweeps, check=False) as plan,
            pytest.raises(CheckpointError, match=r"process .* is training in it"),
            plan.hold_folder(),
        ):
            pass
    assert [each.name for each in (tmp_path / "run").iterdir()] == [runs.LOCK]


def test_a_run_is_locked_before_hydra_writes_and_trains_under_that_lock(tmp_path, monkeypatch) -> None:
    seen = []

    def write(self: Any, config_name: str, task: Any, overrides: list[str]) -> Any:
        seen.append(([each.name for each in (tmp_path / "run").iterdir()], runs.is_locked(tmp_path / "run")))
        with runs.locked(tmp_path / "run", print):  # as the training does
            return SimpleNamespace(return_value=3)

    monkeypatch.setattr("zoo.compose.hydra_engine.Hydra.run", write)
    with plan_launch([f"hydra.run.dir={tmp_path / 'run'}"], check=False) as plan:
        assert plan.run() == 3
    assert seen == [([runs.LOCK], True)]
    assert not runs.is_locked(tmp_path / "run")


@pytest.mark.slow
def test_of_two_processes_with_one_folder_one_trains_and_the_other_leaves_no_trace(tmp_path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"text number {number} of a few")
    shared = [f"data.path={tmp_path / 'text'}", "data=text", "data.tokenizer.kind=byte", "sample=null", "batch_size=1"]
    shared += ["model.n_layers=1", "seq_len=8", f"hydra.run.dir={tmp_path / 'run'}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "zoo", "train", *shared, f"steps={steps}"], stderr=subprocess.PIPE, text=True
        )
        for steps in (3, 4)
    ]
    said = [each.communicate()[1] for each in started]
    codes = [each.returncode for each in started]
    assert sorted(code == 0 for code in codes) == [False, True], said
    winner = codes.index(0)
    assert f"steps={(3, 4)[winner]}" in (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= (3, 4)[winner]
    assert any(text in said[1 - winner] for text in ("is training in it", "has a run in it"))


def test_a_folder_that_another_process_locks_meanwhile_is_not_deleted(tmp_path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    with runs.locked(tmp_path / "run", print):
        monkeypatch.setattr(runs, "locked", lambda folder, say: nullcontext())
        monkeypatch.setattr("zoo.jobs.plan._unused", lambda folder, sweeps: folder)
        run_that_is_refused(tmp_path, monkeypatch)
    assert (tmp_path / "run" / runs.LOCK).is_file()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for key, sweeps in (("hydra.run.dir", False), ("hydra.sweep.dir", True)):
        overrides = [f"{key}={tmp_path / 'file' / 'run'}"]
        with (
            plan_launch(overrides, sweeps=sweeps, check=False) as plan,
            pytest.raises(ConfigError, match=f"cannot be made, found Not a directory \\({key}=FOLDER names another"),
        ):
            plan.make_folder()


@pytest.mark.parametrize("name", ["${nope}", "${model.block.attention}"])
def test_a_folder_whose_name_leads_nowhere_is_one_line(name: str, tmp_path) -> None:
    with plan_launch([f"hydra.run.dir={tmp_path}/{name}"], check=False) as plan:
        with pytest.raises(ConfigError) as caught:
            plan.make_folder()
        assert len(caught.value.faults) == 1 and caught.value.faults[0].startswith("hydra.run.dir: ")


def test_an_outcome_that_was_not_written_whole_counts_as_none(tmp_path) -> None:
    for name, text in zip("abcd", ('{"status": "do', "[1]", "", '{"status": "done"}'), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.RESULT).write_text(text)
    assert [each["status"] for each in runs.results(tmp_path, "abcde")] == [*["cut off"] * 3, "done", "not started"]


def test_a_run_whose_last_run_cannot_be_noted_is_still_whole(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/latest").write_text("step-000001")
    (tmp_path / "runs").write_text("a file where a folder should be")
    monkeypatch.chdir(tmp_path)
    runs.remember(tmp_path / "run")
    assert "runs/last: cannot be written, found File exists" in capsys.readouterr().err.replace(os.sep, "/")
