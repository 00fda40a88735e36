"""Start the processes of a run on this machine, by torch's own launcher (torchrun)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from zoo.errors import ZooError


def launch(processes: int, args: Sequence[str]) -> int:
    """Run `zoo` with these arguments in so many processes, and return its exit code: 0, or that of the first process
    that failed, which has said why. Raises ZooError with the process that was killed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(len(os.sched_getaffinity(0)) // processes, 1) if hasattr(os, "sched_getaffinity") else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # as torchrun does: each has its share of the cores
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, **meeting)
    try:
        elastic_launch(config, sys.executable)("-m", "zoo", *args)
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as error:  # each process has saved before it ended
        return 0 if error.sigval == signal.SIGTERM else 130
    return 0


def _explain(error: Any) -> int:
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return failure.exitcode
    name = signal.Signals(-failure.exitcode).name
    raise ZooError(f"rank {rank}: process {failure.pid} was killed by {name} (`zoo train --resume RUN` goes on)")
