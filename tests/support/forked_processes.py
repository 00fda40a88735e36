"""Processes of a test, forked from one that has imported torch and Zoo already: the ranks of a run as torchrun starts
them, and commands. Of what a tiny model does in a process of its own, imports take most."""

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path

from torch import distributed

TESTS = str(Path(__file__).parents[1])
PROGRAMS = (
    "support.parallel_run_ranks",
    "support.tensor_parallel_ranks",
    "support.context_parallel_ranks",
    "support.pipeline_parallel_ranks",
)
IMPORTED = [*PROGRAMS, "zoo.cli", "zoo.training.loop", "zoo.jobs.train", "zoo.report.run_page", "matplotlib.figure"]


def run_ranks(processes, program, *args, timeout=600):
    """Run `main` of a module beside this one in so many ranks, in this folder; each has written what it found.

    Raises:
        AssertionError: a rank failed or took longer; the others are ended, and the ends of what they said are given.
    """
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=timeout))
    environments = [make_environment(rank, processes, store.port) for rank in range(processes)]
    ended = run_forked([(f"{program}:main", list(map(str, args)), each) for each in environments], timeout)
    failed = [f"rank {rank}, exit code {code}:\n{said[-3000:]}" for rank, (code, said) in enumerate(ended) if code]
    assert not failed, "\n".join(failed)


def read_found(processes, folder):
    """What each rank has written into a folder."""
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]


def run_zoo(words, ranks=1, timeout=280):
    """Run a command of `zoo`, by so many ranks; returns the exit code and what was said, of each."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if ranks > 1 else None
    environments = [make_environment(rank, ranks, store.port) if store else {} for rank in range(ranks)]
    return run_forked([("zoo.cli:run", [list(words)], each) for each in environments], timeout)


def make_environment(rank, processes, port):
    """The variables that torchrun gives a rank."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    restarts = {"TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0, "TORCHELASTIC_RUN_ID": port}
    return {name: str(each) for name, each in (own | meeting | restarts).items()}


def run_forked(jobs, timeout):
    """Run functions, each a `module:name` with arguments and variables, beside each other; returns the exit code of
    each, and what it wrote. Where one fails, the others are ended."""
    context = multiprocessing.get_context("forkserver")
    start_server(context)
    with tempfile.TemporaryDirectory() as folder:
        logs = [os.path.join(folder, str(number)) for number in range(len(jobs))]
        processes = [
            context.Process(target=run_job, args=(job, {**os.environ, "OMP_NUM_THREADS": "1"}, os.getcwd(), log))
            for job, log in zip(jobs, logs, strict=True)
        ]
        for each in processes:
            each.start()
        try:
            until = time.monotonic() + timeout
            while any(each.is_alive() for each in processes) and not any(each.exitcode for each in processes):
                assert time.monotonic() < until, f"takes more than {timeout} seconds: {jobs[0][:2]}"
                time.sleep(0.02)
        finally:
            for each in processes:
                each.kill()
                each.join()
        said = [Path(log).read_text(errors="replace") for log in logs]
        return [(each.exitcode, text) for each, text in zip(processes, said, strict=True)]


def start_server(context):
    """Start the process that others are forked from, once in the life of this one. It finds modules by the variable."""
    context.set_forkserver_preload(IMPORTED)
    with changed(PYTHONPATH=os.pathsep.join([TESTS, *sys.path]), OMP_NUM_THREADS="1"):
        forkserver.ensure_running()


@contextmanager
def changed(**variables):
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_job(job, environment, folder, log):
    """Be the process of a job: its variables are set, and what it writes goes to a file."""
    (place, args, variables) = job
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1), os.dup2(written, 2)
    os.environ.clear(), os.environ.update(environment | variables)
    os.chdir(folder)
    module, name = place.split(":")
    code = getattr(importlib.import_module(module), name)(*args)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.exit(code)
