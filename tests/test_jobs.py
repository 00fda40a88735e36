"""Sweeps: each job is composed by us alone, and Hydra's sweeper, launchers and records get it finished."""

from __future__ import annotations

import cloudpickle  # of joblib and submitit
import pytest
from omegaconf import OmegaConf

from zoo.compose.composing import TRAINING
from zoo.compose.engine import RunMode, open_session
from zoo.errors import ConfigError
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
