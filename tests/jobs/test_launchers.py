"""Runs that something else starts: a job of SLURM, by a stand-in that runs it, a sweep of submitit, Kubernetes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

import zoo
from support.command_lines import list_job_folders
from support.parallel_runs import BASE, SMALL, compare, here
from zoo import cli
from zoo.errors import ConfigError
from zoo.jobs.launch import SAVING, launch
from zoo.jobs.slurm import write_script
from zoo.training.launcher import PATIENCE_OF_TORCHRUN, SlurmLauncher

__all__ = ["here"]  # the fixture

ROOT = Path(__file__).parents[2]
COMMON = ["model=llama-tiny", *BASE, *SMALL, "batch_size=8", "steps=4", "device=cpu"]

SBATCH = """#!/bin/bash
# Run the job at once, as its number 7, and keep what it says where its option says.
[ "$1" = --parsable ] && shift
echo "$@" >> {tools}/asked
log=$(sed -n 's/^#SBATCH --output=//p' "$1")
nodes=$(sed -n 's/^#SBATCH --nodes=//p' "$1")
SLURM_JOB_ID=7 SLURM_NNODES=$nodes bash "$1" > "${{log//%j/7}}" 2>&1 || echo failed >> {tools}/asked
echo "7;cluster"
"""

SRUN = """#!/bin/bash
# Run a task for each node, all on this one.
for ((node = 0; node < SLURM_NNODES; node++)); do "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || code=1; done
exit ${code:-0}
"""


@pytest.fixture
def cluster(here, monkeypatch):
    """A folder whose sbatch and srun stand for those of a cluster."""
    tools = here / "tools"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH.format(tools=tools)), ("srun", SRUN)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tools


def train(*overrides):
    return cli.run(["train", *COMMON, *overrides])


def slurm(*overrides):
    return train("parallel=fsdp", "launcher=slurm", *overrides)


@pytest.mark.slow
def test_a_job_of_slurm_trains_what_one_process_does(cluster, capfd):
    zoo.train("llama-tiny", [*COMMON[1:], "accumulate=2", "hydra.run.dir=one"])
    assert slurm("nproc=2", "hydra.run.dir=run") == 0
    log = Path("run/slurm-7.log").read_text()
    assert f"job 7: {Path('run').absolute()}" in capfd.readouterr().err, log
    assert (cluster / "asked").read_text() == f"{Path('run/launch.sbatch').absolute()}\n", log
    assert "over 2 processes" in log
    compare("one", "run")


@pytest.mark.slow
def test_a_job_that_is_submitted_again_goes_on_on_any_number_of_nodes(cluster, capfd):
    assert slurm("nproc=1", "nodes=2", "hydra.run.dir=run", "save_every=2") == 0
    log = Path("run/slurm-7.log")
    assert "over 2 processes" in log.read_text()
    Path("run/checkpoints/latest").write_text("step-000002\n")  # as though it had ended there
    Path("run/result.json").unlink()
    assert subprocess.run(["sbatch", "run/launch.sbatch"], timeout=120).returncode == 0
    assert "goes on after step 2" in log.read_text()
    options = ["launcher=slurm", "nproc=2", "nodes=1", "steps=6", "launcher.lines=['#SBATCH --mem=0']"]
    assert cli.run(["train", "--resume", "run", *options]) == 0
    assert "goes on after step 4" in log.read_text()
    assert json.loads(Path("run/result.json").read_text())["steps"] == 6


def test_the_script_says_what_the_config_says(here, capsys):
    fields = "{partition: gpu, account: lab, time: '12:00:00', gpus: 4, port: 30000, submit: false}"
    Path("my.yaml").write_text(
        f"defaults:\n  - config\n  - override launcher: slurm\n  - _self_\nnproc: 4\nnodes: 2\nlauncher: {fields}\n"
    )
    lines = "launcher.lines=['#SBATCH --mem=0','module load cuda']"
    options = ["-c", "my.yaml", *COMMON, "parallel=fsdp", "restarts=3", lines, "hydra.run.dir=a run"]
    assert cli.run(["train", *options]) == 0
    file = Path("a run/launch.sbatch").absolute()
    assert capsys.readouterr().err.strip() == f"{file}: written (`sbatch '{file}'` submits it)"
    script = file.read_text()
    asked = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert asked[1:8] == ["nodes=2", "ntasks-per-node=1", "cpus-per-task=4", *ASKED, TIME]
    assert '\nexport SRUN_CPUS_PER_TASK=4\nexport OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"\n' in script
    assert asked[-1] == "mem=0" and script.index("module load cuda") < script.index("srun ")
    assert "signal=TERM@300" in asked and "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300\n" in script
    assert "--nnodes 2 --nproc-per-node 4 --max-restarts 3" in script and '"$(hostname):30000"' in script
    checked = subprocess.run(["bash", "-n", file], capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stderr
    command = script[script.index("-m zoo ") :]
    assert command.startswith("-m zoo train -c my.yaml ") and f"'hydra.run.dir='\"'\"'{file.parent}" in command


ASKED = ("gpus-per-node=4", "partition=gpu", "account=lab")
TIME = "time=12:00:00"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("launcher.gpus=2", "cpus-per-task=8"),
        ("device=cpu", "cpus-per-task=2"),
        ("launcher.cpus=32", "cpus-per-task=32"),
    ],
)
def test_a_job_takes_cpus_for_its_processes(asked, line, here):
    options = [*COMMON[:-1], "parallel=fsdp", "launcher=slurm", "nproc=2", "launcher.submit=false", asked]
    assert cli.run(["train", *options, "hydra.run.dir=run"]) == 0
    assert f"#SBATCH --{line}\n" in Path("run/launch.sbatch").read_text()
    assert cli.run(["train", *options, "launcher.cpus=null", "hydra.run.dir=other"]) == 0
    assert "cpus-per-task" not in Path("other/launch.sbatch").read_text()


@pytest.mark.parametrize(
    ("asked", "line"), [([], "gpus-per-node=2"), (["device=cpu"], None), (["launcher.gpus=0"], None)]
)
def test_a_job_takes_a_gpu_for_each_process_unless_told_otherwise(asked, line, here):
    options = [*COMMON[:-1], "parallel=fsdp", "launcher=slurm", "nproc=2", "launcher.submit=false", *asked]
    assert cli.run(["train", *options, "hydra.run.dir=run"]) == 0
    script = Path("run/launch.sbatch").read_text()
    assert ("gpus-per-node" in script) == (line is not None) and (line or "") in script


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["nproc=2"], "launcher: is slurm, and there is no sbatch here (launcher.submit=false writes the job alone)"),
        ([], "nproc: is null, and launcher=slurm starts processes (nproc=2, say)"),
        (["nproc=2", "launcher.time=soon"], "launcher.time: is 'soon', which is no time of SLURM's"),
        (["nproc=2", "launcher.time=30"], "launcher.time: is the number 30 (a text, with its seconds"),
        (["nproc=2", "launcher.partition='a b'"], "launcher.partition: is 'a b', which is no name of SLURM's"),
        (["nproc=2", "launcher.lines=['a\nb']"], "launcher.lines: has 'a\\nb' as one line (an entry for each)"),
        (["nproc=2", "launcher.cpus=0"], "launcher.cpus: must be a whole number from 1 up, or auto, found 0"),
        (["nproc=2", "launcher.port=80"], "launcher.port: must be greater than or equal to 1024"),
        (["nproc=3", "nodes=3"], "batch_size: is 8, which 9 processes"),
        (["nproc=2", "launcher.dry=true"], "launcher.dry: unknown key"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_a_file_is_written(overrides, fault, here, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm(*overrides, "hydra.run.dir=run") == 2
    assert fault in capsys.readouterr().err
    assert not Path("run").exists()


def test_nodes_are_those_of_slurm(here, capsys):
    assert train("nodes=2") == 2
    assert "nodes: is 2, and nothing starts them (launcher=slurm, or nodes=1)" in capsys.readouterr().err
    assert train("launcher=torchrun", "nproc=2", "nodes=2", "parallel=fsdp") == 2
    assert "nodes: is 2, and launcher=torchrun starts processes on this machine" in capsys.readouterr().err


def test_what_sbatch_refuses_is_said_in_one_line(cluster, capfd):
    (cluster / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert slurm("nproc=2", "hydra.run.dir=run") == 1
    assert "launch.sbatch: sbatch refused it, found: sbatch: error: invalid partition" in capfd.readouterr().err


@pytest.mark.slow
def test_submitit_runs_the_jobs_of_a_sweep(here):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = [sys.executable, "-m", "zoo", "train", "-m", "hydra/launcher=submitit_local", *COMMON, "seed=0,1"]
    command += ["hydra.sweep.dir=sweep", "hydra.launcher.timeout_min=5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert all(
        json.loads((job / "result.json").read_text())["status"] == "done" for job in list_job_folders(Path("sweep"))
    )
    assert list(Path("sweep/.submitit").glob("*/*_result.pkl"))


@pytest.mark.parametrize(("stated", "seconds"), [(None, 600), ("90", 90)])
def test_processes_that_zoo_starts_have_ten_minutes_to_save_unless_the_user_says_otherwise(
    stated, seconds, monkeypatch
):
    configs = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(PATIENCE_OF_TORCHRUN, stated or "")
    if stated is None:
        monkeypatch.delenv(PATIENCE_OF_TORCHRUN)
    start = lambda config, python: configs.append(config) or (lambda *words: {})  # noqa: E731
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    monkeypatch.setattr("zoo.jobs.launch._silence_elastic", lambda restarts: None)
    launch(2, ["train"])
    assert os.environ[PATIENCE_OF_TORCHRUN] == str(seconds)
    assert getattr(configs[0], "shutdown_timeout", seconds) == seconds  # of torch 2.13
    assert f"{SAVING} seconds to save" in " ".join((ROOT / "docs/launchers.md").read_text(encoding="utf-8").split())


# ---------------------------------------------------------------- Kubernetes

MANIFESTS = sorted((ROOT / "docs" / "k8s").glob("*.yaml"))


def read_pod(manifest):
    """The containers, volumes and number of nodes of a manifest."""
    spec = manifest["spec"]
    if manifest["kind"] == "PyTorchJob":
        worker = spec["pytorchReplicaSpecs"]["Worker"]
        return worker["template"]["spec"], worker["replicas"] * int(spec["nprocPerNode"])
    (job,) = spec["replicatedJobs"]
    assert job["template"]["spec"]["completions"] == job["template"]["spec"]["parallelism"]
    pod = job["template"]["spec"]["template"]["spec"]
    return pod, job["template"]["spec"]["completions"] * pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_has_the_fields_of_its_kind_and_a_command_that_would_run(file, monkeypatch):
    from torch.distributed.run import parse_args

    from zoo.jobs.plan import plan_launch

    manifest = yaml.safe_load(file.read_text())
    validator = jsonschema.Draft7Validator(json.loads((ROOT / "tests" / "support" / "k8s_schema.json").read_text()))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    pod, processes = read_pod(manifest)
    (container,) = pod["containers"]
    assert container["command"] == ["torchrun"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    (patience,) = (each["value"] for each in container["env"] if each["name"] == PATIENCE_OF_TORCHRUN)
    assert int(patience) == SAVING < pod["terminationGracePeriodSeconds"]
    asked = parse_args(container["args"])
    assert asked.module and asked.training_script == "zoo" and asked.rdzv_id == "llama-1"
    if manifest["kind"] == "JobSet":
        name, jobs = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"]
        assert asked.rdzv_endpoint == f"{name}-{jobs[0]['name']}-0-0.{name}:29500"
        assert int(asked.nnodes) * int(asked.nproc_per_node) == processes
    for variable, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", processes)):
        monkeypatch.setenv(variable, str(value))
    with plan_launch(asked.training_script_args[1:]) as plan:
        assert len(plan.jobs) == 1


def test_a_field_that_a_kind_has_not_is_no_field_of_a_manifest():
    validator = jsonschema.Draft7Validator(json.loads((ROOT / "tests" / "support" / "k8s_schema.json").read_text()))
    for file in MANIFESTS:
        text = file.read_text()
        for right, wrong in (("containers:", "container:"), ("volumeMounts:", "mounts:"), ("image:", "picture:")):
            assert not validator.is_valid(yaml.safe_load(text.replace(right, wrong))), (file.name, wrong)


@pytest.mark.parametrize("character", ["\n", "\r", "\x0b", "\x85", "\u2028"])
def test_a_job_of_slurm_has_no_line_that_the_config_does_not_state(character):
    for field in ("partition", "account", "time", "lines"):
        value = f"a{character}touch canary"
        with pytest.raises(ValidationError):
            SlurmLauncher.parse({"kind": "slurm", field: [value] if field == "lines" else value})
    settings = SimpleNamespace(device="cpu", nproc=1, nodes=1, restarts=0)
    with pytest.raises(ConfigError, match="would not be one line of the job's script"):
        list(write_script(settings, SlurmLauncher(), [], Path(f"a{character}touch canary")))
