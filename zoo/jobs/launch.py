"""Start the processes of a run: on this machine by torch's own launcher (torchrun), or as a job of SLURM."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError
from zoo.jobs.command import Command
from zoo.jobs.slurm import submit
from zoo.training.launcher import PATIENCE_OF_TORCHRUN
from zoo.training.restarts import is_launched

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from zoo.training.settings import Training


SAVING = 600
"""Seconds that the processes of this machine have to save a checkpoint after SIGTERM."""


def start_processes(settings: Training, command: Command, make_folder: Callable[[], Path]) -> int | None:
    """Start the processes of a run whose config has a launcher, and return the exit code; None if there is nothing to
    start. `make_folder` makes the run's folder, if it must be known before the start."""
    launcher, count = settings.launcher, settings.nproc
    if launcher.kind == "none" or count is None or is_launched():
        return None
    if launcher.kind == "slurm":
        return submit(settings, command, make_folder)
    if settings.restarts:
        command = command.place(make_folder())
    return launch(count, command.list_words(), settings.restarts)


def launch(processes: int, args: Sequence[str], restarts: int = 0) -> int:
    """Run `zoo` with these arguments in several processes. Returns the exit code: 0 after success or SIGTERM, 130 after
    another signal, else that of the first process that failed, which prints its own error. Raises ZooError if a process
    was killed and no restart is left."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(len(os.sched_getaffinity(0)) // processes, 1) if hasattr(os, "sched_getaffinity") else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # each process gets its share of the cores, unless set
    os.environ.setdefault(PATIENCE_OF_TORCHRUN, str(SAVING))
    _silence_elastic(restarts)
    meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=restarts, **meeting)
    try:
        elastic_launch(config, sys.executable)("-m", "zoo", *args)
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as error:  # each process has saved a checkpoint
        return 0 if error.sigval == signal.SIGTERM else 130
    return 0


class RestartLines(logging.Handler):
    """Log handler that prints a line for each lost process in torch's log, as long as restarts are left."""

    def __init__(self, restarts: int) -> None:
        super().__init__(logging.ERROR)
        self.left = restarts

    def emit(self, record: logging.LogRecord) -> None:
        if not str(record.msg).startswith("failed (exitcode") or not isinstance(record.args, tuple):
            return
        self.left -= 1
        if self.left >= 0:
            code, rank, process = record.args[:3]
            print(f"zoo: rank {rank}: {_describe_end(int(str(code)), process)}; restarting all", file=sys.stderr)


def _silence_elastic(restarts: int) -> None:
    """Silence the log of torch's launcher. Lost processes are reported by `RestartLines` and `_explain`."""
    logger = logging.getLogger("torch.distributed.elastic")
    logger.setLevel(logging.ERROR if restarts else logging.CRITICAL)
    if restarts:
        logger.handlers, logger.propagate = [RestartLines(restarts)], False


def _explain(error: ChildFailedError) -> int:
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return failure.exitcode
    ended = _describe_end(failure.exitcode, failure.pid)
    raise ZooError(f"rank {rank}: {ended} (`zoo train --resume RUN` goes on from a checkpoint)")


def _describe_end(code: int, process: object) -> str:
    if code >= 0:
        return f"process {process} failed with exit code {code}"
    return f"process {process} was killed by {signal.Signals(-code).name}"
