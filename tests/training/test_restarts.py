"""A run whose processes are lost goes on: torchrun restarts it, in place, and it goes on with fewer processes too."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import zoo
from support.parallel_runs import BASE, SMALL, compare, find_rank, here, lines_of, wait_for
from zoo import cli
from zoo.distributed.meeting import agree_on_prefix
from zoo.errors import ConfigError
from zoo.training.restarts import FILE

__all__ = ["here"]  # the fixture

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
COMMON = [*BASE, *SMALL, "batch_size=8", "eval_every=5000"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SMALLEST = [*COMMON, "steps=2"]
STARTED = []


def start(launched, *overrides, folder="run"):
    """Start `zoo train`, by torchrun where `launched` are its options."""
    command = [*TORCHRUN, *launched, "-m", "zoo"] if launched else [sys.executable, "-m", "zoo"]
    command += ["train", "model=llama-tiny", *COMMON, "parallel=fsdp", f"hydra.run.dir={folder}", *overrides]
    STARTED.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def none_outlives_a_test():
    yield
    while STARTED:
        if (running := STARTED.pop()).poll() is None:
            running.terminate()
            running.communicate(timeout=60)


def finish(running, seconds=150):
    """Wait for a run, and return what it said."""
    return running.communicate(timeout=seconds)[1]


def saved(folder="run"):
    return (Path(folder) / "checkpoints" / "latest").exists()


def newest(folder="run"):
    return int(max(Path(folder).glob("checkpoints/step-*")).name.removeprefix("step-"))


def kill(running, rank, when):
    """Kill a rank with SIGKILL once `when()` holds."""
    wait_for(lambda: when() or running.poll() is not None)
    os.kill(wait_for(lambda: find_rank(running.pid, rank)), signal.SIGKILL)


@pytest.mark.slow
def test_a_launcher_restarts_all_processes_and_the_run_goes_on(here):
    zoo.train("llama-tiny", [*COMMON, "steps=24", "accumulate=2", "hydra.run.dir=one"])
    running = start([], "steps=24", "save_every=4", "launcher=torchrun", "nproc=2", "restarts=1")
    kill(running, 1, saved)
    said = finish(running)
    assert running.returncode == 0, said
    assert "zoo: rank 1: process" in said and "was killed by SIGKILL; restarting all" in said
    assert "restart 1 of 1: goes on after step" in said and "Traceback" not in said
    compare("one", "run")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_torchrun_restarts_a_run_as_often_as_it_may(ranks, here):
    zoo.train("llama-tiny", [*COMMON, "steps=120", "accumulate=2", "hydra.run.dir=one"])
    options = ["--standalone", "--max-restarts", "2", "--nproc-per-node", "2"]
    running = start(options, "steps=120", "save_every=4")
    kill(running, ranks[0], saved)
    first = newest()
    wait_for(lambda: newest() >= first + 12 or running.poll() is not None)  # the second start has saved, too
    kill(running, ranks[1], saved)
    said = finish(running)
    assert running.returncode == 0, said
    assert "restart 1 of 2: goes on after step" in said and "restart 2 of 2: goes on after step" in said
    compare("one", "run")


@pytest.mark.slow
def test_a_restart_before_the_first_checkpoint_starts_anew(here):
    zoo.train("llama-tiny", [*COMMON, "steps=60", "accumulate=2", "hydra.run.dir=one"])
    running = start(["--standalone", "--max-restarts", "1", "--nproc-per-node", "2"], "steps=60", "save_every=5000")
    metrics = here / "run" / "metrics.jsonl"
    kill(running, 0, lambda: metrics.exists() and metrics.stat().st_size)
    said = finish(running)
    assert running.returncode == 0, said
    assert "restart 1 of 1: starts anew, as there is no checkpoint yet" in said
    compare("one", "run")


@pytest.mark.slow
def test_a_run_of_four_processes_that_was_killed_goes_on_with_two(here):
    zoo.train("llama-tiny", [*COMMON, "steps=40", "accumulate=4", "hydra.run.dir=one"])
    running = start([], "steps=40", "save_every=2", "launcher=torchrun", "nproc=4")
    kill(running, 3, lambda: saved() and newest() >= 4)
    said = finish(running)
    assert running.returncode == 1 and "rank 3: process" in said
    last = newest()
    two = ["launcher=torchrun", "nproc=2", "accumulate=2"]
    command = [sys.executable, "-m", "zoo", "train", "--resume", "run", *two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"goes on after step {last}" in done.stderr and "over 2 processes" in done.stderr
    assert "a run of 4 processes, which goes on with 2" in " ".join(done.stderr.split())
    compare("one", "run")
    losses = [[line["loss"] for line in lines_of(folder) if "loss" in line] for folder in ("one", "run")]
    print("largest difference of a loss", max(abs(a - b) for a, b in zip(*losses, strict=True)))


def test_a_run_that_goes_on_with_fewer_processes_says_so_and_one_with_as_many_does_not(here, monkeypatch, capsys):
    def go_on(steps):
        zoo.train(resume="run", overrides=[f"steps={steps}"])
        return [line for line in capsys.readouterr().err.splitlines() if "processes" in line]

    zoo.train("llama-tiny", [*SMALLEST, "parallel=fsdp", "hydra.run.dir=run"])
    assert go_on(3) == []
    counters = Path("run/checkpoints/step-000003/training.json")
    of_one = counters.read_text()
    assert '"processes": 1,' in of_one
    counters.write_text(of_one.replace('"processes": 1,', '"processes": 2,'))  # as two processes write it
    monkeypatch.setenv("ZOO_NO_VERIFY", "1")
    (line,) = go_on(4)
    assert "step-000003: a run of 2 processes, which goes on with 1 (torchrun, or launcher=torchrun nproc=" in line


@pytest.mark.slow
def test_a_machine_that_is_lost_leaves_the_others_to_go_on(here):
    """Two torchruns stand for two machines: one is killed with its processes, and the others take its rows."""
    zoo.train("llama-tiny", [*COMMON, "steps=300", "accumulate=4", "hydra.run.dir=one"])
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "job"]
    meeting += ["--rdzv-conf", "last_call_timeout=5"]
    options = [*meeting, "--nnodes", "1:2", "--nproc-per-node", "2", "--max-restarts", "3"]
    machines = [start(options, "steps=300", "save_every=2") for _ in range(2)]
    wait_for(saved)
    host = socket_owner(port, machines)
    (lost,) = (each for each in machines if each is not host)
    theirs = [pid for rank in range(4) if (pid := find_rank(lost.pid, rank))]
    assert len(theirs) == 2
    for process in (lost.pid, *theirs):
        os.kill(process, signal.SIGKILL)
    said = finish(host, 180)
    finish(lost)
    assert host.returncode == 0, said
    assert "over 4 processes" in said and "over 2 processes" in said and "goes on after step" in said
    compare("one", "run")


def socket_owner(port, machines):
    """The process that listens on a port."""
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    nodes = {f"socket:[{each[9]}]" for each in listening if each[1].endswith(f":{port:04X}") and each[3] == "0A"}
    return next(
        each
        for each in machines
        if nodes & {os.readlink(file) for file in Path(f"/proc/{each.pid}/fd").iterdir() if file.is_symlink()}
    )


# ---------------------------------------------------------------- whose run it is


@pytest.fixture
def launched(here, monkeypatch):
    """Make this process one that torchrun has started, alone, in a launch that may restart it."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    names |= {f"TORCHELASTIC_{name}": value for name, value in (("RUN_ID", "a"), ("MAX_RESTARTS", 2))}

    def again(count, **other):
        monkeypatch.setattr("zoo.training.restarts._begun", set())  # another process
        for name, value in {**names, "TORCHELASTIC_RESTART_COUNT": count, **other}.items():
            monkeypatch.setenv(name, str(value))

    again(0)
    return again


def train(*overrides):
    return cli.run(["train", "model=llama-tiny", *SMALLEST, "save_every=1", "hydra.run.dir=run", *overrides])


def test_a_run_goes_on_for_its_own_launch_alone(launched, capsys):
    assert train() == 0
    assert json.loads(Path("run", FILE).read_text())["launch"] == "a"
    before = lines_of("run")
    launched(1, TORCHELASTIC_RUN_ID="b")
    assert train() == 2 and "has a run in it" in capsys.readouterr().err
    launched(1)
    assert train("optim.lr=1e-2") == 2 and "has a run in it" in capsys.readouterr().err
    launched(1)
    assert train() == 0 and "run: is finished, found a checkpoint of step 2" in capsys.readouterr().err
    assert lines_of("run") == before


@pytest.mark.slow
def test_a_launch_without_an_id_is_known_by_its_torchrun(launched, monkeypatch, capsys):
    launched(0, TORCHELASTIC_RUN_ID="none")
    assert train() == 0
    monkeypatch.setattr("os.getppid", lambda: 1)
    launched(1, TORCHELASTIC_RUN_ID="none")
    assert train() == 2 and "has a run in it" in capsys.readouterr().err


def test_a_program_does_not_begin_its_run_twice(launched):
    overrides = [*SMALLEST, "hydra.run.dir=run"]
    zoo.train("llama-tiny", overrides)
    with pytest.raises(ConfigError, match="has a run in it"):
        zoo.train("llama-tiny", overrides)


def test_a_run_that_may_be_restarted_needs_a_folder_that_it_finds_again(launched, capsys):
    assert cli.run(["train", "model=llama-tiny", *SMALLEST]) == 2
    said = capsys.readouterr().err
    assert "hydra.run.dir: is named by the time, and torchrun may restart the run (--max-restarts=2)" in said


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["restarts=1"], "restarts: is 1, and nothing restarts them (launcher=torchrun, or restarts=0)"),
        (["launcher=torchrun", "nproc=2", "restarts=-1", "parallel=fsdp"], "restarts: must be greater than"),
    ],
)
def test_restarts_are_those_of_a_launcher(overrides, fault, here, capsys):
    assert cli.run(["train", "model=llama-tiny", *SMALLEST, *overrides]) == 2
    assert fault in capsys.readouterr().err


def test_each_start_has_keys_of_its_own_in_a_store_that_is_kept():
    store, names = torch.distributed.HashStore(), []
    for size in (4, 4, 2, 3):
        with ThreadPoolExecutor(size) as pool:
            found = [pool.submit(agree_on_prefix, store, rank, size, timedelta(seconds=20)) for rank in range(size)]
            (name,) = {each.result(30) for each in found}
        names.append(name)
    assert len(set(names)) == 4
