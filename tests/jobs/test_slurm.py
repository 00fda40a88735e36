"""Runs on a real SLURM of one node: submitted, signalled before the limit, cancelled, and gone on with."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from support import slurm_cluster
from support.parallel_runs import BASE, SMALL, here
from zoo import cli

__all__ = ["here"]  # the fixture

pytestmark = pytest.mark.slow
COMMON = ["model=llama-tiny", *BASE, *SMALL, "batch_size=8", "device=cpu", "parallel=fsdp", "launcher=slurm", "nproc=2"]
PLAIN = ["eval_every=null", "sample=null", "log_every=1"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    try:
        slurm_cluster.unpack(folder)
    except (RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"SLURM cannot be had: {error}")
    return folder


@pytest.fixture
def cluster(unpacked, here, monkeypatch, tmp_path_factory):
    with slurm_cluster.start(unpacked, tmp_path_factory.mktemp("node")) as environment:
        for name in ("PATH", "SLURM_CONF", "LD_LIBRARY_PATH"):
            monkeypatch.setenv(name, environment[name])
        yield environment


def wait_until(happened, what="run", seconds=300):
    slurm_cluster.wait_for(happened, seconds, what)


def state_of(cluster, job):
    told = dict(word.partition("=")[::2] for word in slurm_cluster.ask(cluster, "scontrol", "show", "job", job).split())
    return told.get("JobState")


def count_steps():
    file = Path("run/metrics.jsonl")
    return len([line for line in file.read_text().splitlines() if "lr" in json.loads(line)]) if file.is_file() else 0


def read_log(job):
    file = Path(f"run/slurm-{job}.log")
    return file.read_text() if file.is_file() else ""


def find_stop(job):
    """The step after which a job stopped and saved."""
    said = read_log(job)
    assert "stopped after step " in said, said
    stopped = int(said.split("stopped after step ")[1].split(";")[0])
    assert Path(f"run/checkpoints/step-{stopped:06}").is_dir(), said
    return stopped


def test_a_job_is_submitted_cancelled_and_goes_on_where_it_was(cluster, capfd):
    options = [*COMMON, *PLAIN, "steps=100000", "save_every=null", "hydra.run.dir=run"]
    assert cli.run(["train", *options, "launcher.lines=['echo job has $SLURM_CPUS_ON_NODE CPUs']"]) == 0
    first = capfd.readouterr().err.split("job ")[1].split(":")[0]
    wait_until(lambda: count_steps() > 2)
    assert "over 2 processes" in read_log(first) and "job has 2 CPUs" in read_log(first)
    slurm_cluster.ask(cluster, "scancel", first)
    wait_until(lambda: state_of(cluster, first) == "CANCELLED" and "srun: error" in read_log(first))
    stopped = find_stop(first)
    second = slurm_cluster.ask(cluster, "sbatch", "--parsable", "run/launch.sbatch").strip()
    wait_until(lambda: f"goes on after step {stopped}" in read_log(second))
    done = count_steps()
    wait_until(lambda: count_steps() > done)
    slurm_cluster.ask(cluster, "scontrol", "requeue", second)  # as SLURM does for a lost node; the log goes on
    wait_until(lambda: read_log(second).count("goes on after step") == 2)
    slurm_cluster.ask(cluster, "scancel", second)
    wait_until(lambda: state_of(cluster, second) == "CANCELLED")


def test_a_job_saves_before_its_time_is_up(cluster, capfd):
    limit = ["launcher.time='01:00:00'", "launcher.warning=300"]
    assert cli.run(["train", *COMMON, *PLAIN, *limit, "steps=100000", "save_every=null", "hydra.run.dir=run"]) == 0
    job = capfd.readouterr().err.split("job ")[1].split(":")[0]
    wait_until(lambda: count_steps() > 2)
    slurm_cluster.ask(cluster, "scontrol", "update", f"JobId={job}", "TimeLimit=5")  # minutes: the warning is due
    wait_until(lambda: state_of(cluster, job) in ("FAILED", "CANCELLED", "TIMEOUT"))
    find_stop(job)


def test_a_job_that_the_cluster_cannot_run_is_refused_in_one_line(cluster, capfd):
    options = [*COMMON, *PLAIN, "steps=10", "launcher.cpus=4096", "hydra.run.dir=run"]
    assert cli.run(["train", *options]) == 1
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        f"zoo: error: {shlex.quote(str(Path('run').absolute() / 'launch.sbatch'))}: sbatch refused it"
    )
    assert "configuration is not available" in said
