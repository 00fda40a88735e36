"""Run cases in forked processes, beside a watch that ends those that take too long or too much memory.

This process imports Zoo and torch once, and starts a worker by forking itself; a worker takes some dozens of cases, one
after the other. A case that fails is run again in a worker of its own, so that none fails for what another left.
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from .judge import LARGEST, LONGEST, Verdict, remove_place, run_case
from .kinds import Case, make_case
from .values import Place

EACH = 40
"""Cases of a worker, which then ends: what they leave in memory is gone with it."""
FULL = 1500 << 20
"""Bytes after which a worker takes no further case."""

Job = tuple[str, int, int]
"""A kind, a seed and a number."""
Maker = Callable[[str, int, int, Place], Case]


def warm_up(seeds: Path) -> None:
    """Import what the verbs need and fill the caches, once for all workers. No tensor is computed: a forked process
    would hang in torch's threads."""
    import importlib
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    os.environ |= {"COLUMNS": "160", "NO_COLOR": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    os.environ["GIT_CONFIG_GLOBAL"] = os.environ["GIT_CONFIG_SYSTEM"] = os.devnull
    for name in ("torch", "tokenizers", "safetensors.torch", "matplotlib.figure", "rich.console", *ROOMS):
        importlib.import_module(name)
    from zoo.cli import run

    from .command_lines import list_verbs

    list_verbs()
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        for line in WARM:
            run([word.replace("SEEDS", str(seeds)) for word in line.split()])
    gc.enable()
    gc.collect()
    gc.freeze()


ROOMS = (
    *("zoo.cli", "zoo.api", "zoo.training.loop", "zoo.jobs.train", "zoo.report.run_page", "zoo.report.runplot"),
    *(
        "zoo.text.jobs",
        "zoo.text.labels",
        "zoo.text.vectors",
        "zoo.generation.engine",
        "zoo.checkpoint.hf",
        "zoo.inspection",
    ),
)
WARM = (
    *(
        "stats llama3-8b attention=mqa --gpu h100",
        "stats SEEDS/hf",
        "train model=llama-tiny --cfg job",
        "check SEEDS/hf",
    ),
    *(
        "stats SEEDS/gguf/model.gguf",
        "recipes",
        "predict SEEDS/fit.json --flops 1e20",
        "report SEEDS/sweep",
        "stats SEEDS/run",
    ),
    *(
        "solve context llama3-8b --gpu h100",
        "solve shape --params 1M",
        "build llama-tiny --device meta",
        "diff gpt2 llama3-8b",
    ),
)


@dataclass
class Worker:
    """A forked process, its remaining jobs, and what it is at."""

    pid: int
    pipe: int
    jobs: list[Job]
    text: bytes = b""
    at: Job | None = None
    words: list[str] = field(default_factory=list)
    about: str = ""
    began: float = 0.0
    spent: float = 0.0
    ended: str = ""
    """Why the watch ended it."""
    alone: bool = False


class Pool:
    """Workers for so many processors. `root` gets a folder for each case while it runs."""

    def __init__(self, seeds: Path, root: Path, workers: int, make: Maker = make_case, keep: bool = False) -> None:
        self.seeds, self.root, self.count, self.make, self.keep = seeds, root, workers, make, keep
        self.workers: list[Worker] = []

    def run(self, jobs: Iterable[Job], until: float = float("inf")) -> Iterator[Verdict]:
        """Run jobs up to a time by the clock (of time.monotonic); yields verdicts as they come."""
        waiting, again = iter(jobs), []
        done = False
        while True:
            while len(self.workers) < self.count and (again or not done):
                if again:
                    self._start([again.pop()], alone=True)
                    continue
                batch = [] if time.monotonic() > until else list(islice(waiting, EACH))
                done = len(batch) < EACH
                if batch:
                    self._start(batch)
            if not self.workers:
                return
            for verdict, alone in self._wait():
                if verdict.faults and not alone:
                    again.append((verdict.kind, verdict.seed, verdict.case))
                else:
                    yield verdict

    def _start(self, jobs: list[Job], alone: bool = False) -> None:
        ours, theirs = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            _work(jobs, theirs, self)
        os.close(theirs)
        self.workers.append(Worker(pid, ours, jobs, alone=alone))

    def _wait(self) -> Iterator[tuple[Verdict, bool]]:
        """Wait for a while; yield the verdicts that have come, with whether their workers had no other case."""
        pipes = {worker.pipe: worker for worker in self.workers}
        ready, _, _ = select.select(list(pipes), [], [], 0.2)
        for worker in list(self.workers):
            if worker.pipe not in ready:
                _watch(worker)
                continue
            data = os.read(worker.pipe, 1 << 16)
            worker.text += data
            *lines, worker.text = worker.text.split(b"\n")
            for line in lines:
                if (verdict := _hear(worker, json.loads(line))) is not None:
                    yield verdict, worker.alone
            if not data:
                yield from self._bury(worker)

    def _bury(self, worker: Worker) -> Iterator[tuple[Verdict, bool]]:
        """Take leave of a worker that ended; where it ended within a case that is the case's fault."""
        _, status = os.waitpid(worker.pid, 0)
        os.close(worker.pipe)
        self.workers.remove(worker)
        if worker.at is None and not os.WIFSIGNALED(status) and not os.WEXITSTATUS(status):
            if worker.jobs:  # its memory was full
                self._start(worker.jobs)
            return
        how = (
            f"signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"exit {os.WEXITSTATUS(status)} of the process"
        )
        name, seed, number = worker.at or worker.jobs[0]
        kept = f"{self.root / f'{name}-{seed}-{number}'}"
        verdict = Verdict(name, seed, number, worker.words, worker.about, -1, [worker.ended or how])
        verdict.seconds = time.monotonic() - worker.began
        with suppress(OSError):
            verdict.errors = Path(kept, "stderr").read_text(errors="replace")[-3000:]
        if not self.keep:
            remove_place(Place(Path(kept), self.seeds))
        rest = [job for job in worker.jobs if job != (name, seed, number)]
        if rest:
            self._start(rest)
        yield verdict, True  # it takes long: not again


def _hear(worker: Worker, told: dict) -> Verdict | None:
    """Note what a worker is at, or give the verdict that it came to."""
    if "at" in told:
        worker.at = tuple(told["at"])
        worker.words, worker.about = told["words"], told["about"]
        worker.began, worker.spent = time.monotonic(), _read_spent(worker.pid)
        return None
    worker.jobs = [job for job in worker.jobs if job != worker.at]
    worker.at = None
    return Verdict(**told)


def _watch(worker: Worker) -> None:
    """End a worker whose case takes too long or too much memory."""
    if worker.at is None or worker.ended:
        return
    seconds, spent = time.monotonic() - worker.began, _read_spent(worker.pid) - worker.spent
    if spent > LONGEST or seconds > 2 * LONGEST:
        worker.ended = f"took more than {LONGEST:.0f} seconds"
    elif _read_memory(worker.pid) > LARGEST:
        worker.ended = f"took more than {LARGEST >> 30} GB"
    if worker.ended:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


def _read_spent(pid: int) -> float:
    """Read the seconds of processors that a process and its ended children took."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _read_memory(pid: int) -> int:
    with suppress(OSError):
        if found := re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) << 10
    return 0


def _work(jobs: list[Job], pipe: int, pool: Pool) -> None:
    """Be a worker: run the jobs, tell of each, and exit."""
    code = 1
    try:
        os.setpgid(0, 0)
        _end_with_parent()
        _limit_files()
        stream = os.fdopen(pipe, "w")

        def tell(told: dict) -> None:
            stream.write(json.dumps(told) + "\n")
            stream.flush()

        for job in jobs:
            place = Place(pool.root / "-".join(map(str, job)), pool.seeds)
            remove_place(place)
            tell({"at": job, "words": [], "about": "being made"})
            case = pool.make(*job, place)
            tell({"at": job, "words": [each[:300] for each in case.words], "about": case.about[:500]})
            verdict = run_case(case, place, *job)
            tell(verdict.to_dict())
            if not pool.keep:
                remove_place(place)
            if _read_memory(os.getpid()) > FULL:
                break
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _end_with_parent() -> None:
    """Have the system end this process when the one that watches it is gone."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, on Linux


def _limit_files() -> None:
    """Keep a case from filling the disk, or from leaving its memory there."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
