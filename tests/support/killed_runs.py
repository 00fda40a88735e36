"""Let a tiny run live many short lives: each is a process forked after the imports, and most are killed or hurt.

    PYTHONPATH=tests python -m support.killed_runs FOLDER '{"kills": 12, "seed": 0, "overrides": []}'

writes a report as JSON on standard output.

A life starts the run in its folder, or resumes it. What happens to it comes at the n-th *event* of its saves (a write,
an fsync, a rename, a removal …), or at a random time. After each life the newest checkpoint must be whole and at most
one interval of saving old. A run that comes to its end must have the files of the run that nothing happened to, byte
for byte; then the next run begins. The clock is made of steps, as what a clock measures would differ.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # which torch imports late: forked with everything there, a life starts in milliseconds

from support.tiny_runs import compose_run
from zoo import runs
from zoo.checkpoint import store
from zoo.checkpoint.tensor_files import read_header
from zoo.disk import write_text
from zoo.errors import Terminated, ZooError
from zoo.generation import engine  # noqa: F401
from zoo.jobs import train
from zoo.run.threads import ThreadWatch
from zoo.training import building, log, loop, metric_lines
from zoo.training.speed import Clock, Peak

EVERY = 4  # steps between saves
CONFIG = [
    *(f"save_every={EVERY}", "steps=22", "eval_every=5", "eval_batches=1", "accumulate=2"),
    *("sample={kind: text, prompt: the, tokens: 2}", "data.validation_fraction=0.2"),
]
AUDITED = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "os.mkdir": "mkdir",
    "os.truncate": "cut",
}
DONE, FAILED, STOPPED, BROKEN = 0, 3, 4, 5
"""Exit codes of a life: the end of the run; an error of ours, in one line; SIGTERM after a checkpoint; any other, a
bug."""


class Events:
    """Counts what touches the disk below a folder, and calls `strike(kind, tear)` at the one whose turn it is.

    `tear` does half of a write. With `everywhere` events outside a save count as well.
    """

    def __init__(self, below: Path, turn: int, strike: Callable, everywhere: bool = False) -> None:
        self.below, self.turn, self.strike, self.everywhere = str(below), turn, strike, everywhere
        self.seen, self.saving = 0, False

    def meet(self, kind: str, path: object, tear: Callable[[], object] = lambda: None) -> None:
        if (self.saving or self.everywhere) and str(path).startswith(self.below):
            self.seen += 1
            if self.seen == self.turn:
                self.strike(kind, tear)

    def listen(self) -> None:
        """Hear of every event from here on. An audit hook hears of a call before it is made."""
        sys.addaudithook(self._audit)
        _around(os, "fsync", lambda handle: self.meet("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        whole_tensors, whole_text, whole_line = store.write_tensors, Path.write_text, log.RunLog._append

        def write_tensors(tensors, file):
            self.meet(
                "write", file, lambda: (whole_tensors(tensors, file), os.truncate(file, file.stat().st_size // 2))
            )
            whole_tensors(tensors, file)

        def write_text(path, text, **options):
            self.meet("write", path, lambda: whole_text(path, text[: len(text) // 2], **options))
            return whole_text(path, text, **options)

        def append(records, name, text):
            self.meet("write", records.folder / name, lambda: whole_line(records, name, text[: len(text) // 2]))
            whole_line(records, name, text)

        store.write_tensors, Path.write_text, log.RunLog._append = write_tensors, write_text, append
        whole_save, whole_counters = store.save_run, store.write_counters
        store.save_run = self._as_saving(whole_save)
        store.write_counters = self._as_saving(whole_counters)

    def _as_saving(self, work: Callable) -> Callable:
        def saving(*args, **options):
            before, self.saving = self.saving, True
            try:
                return work(*args, **options)
            finally:
                self.saving = before

        return saving

    def _audit(self, event: str, args: tuple) -> None:
        if event in AUDITED:
            self.meet(AUDITED[event], os.fspath(args[0]))
        elif event == "open" and isinstance(args[0], str | os.PathLike):
            flags = args[2] if isinstance(args[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.meet("open", os.fspath(args[0]))


def _around(module, name: str, first: Callable) -> None:
    work = getattr(module, name)

    def both(*args):
        first(*args)
        return work(*args)

    setattr(module, name, both)


def kill(kind: str, tear: Callable[[], object]) -> None:
    tear()
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable:
    """An error of the operating system, with half of a write done. It stays, as a full disk does."""

    def strike(kind: str, tear: Callable[[], object]) -> None:
        tear()
        raise OSError(number, os.strerror(number))

    return strike


def ask_to_stop(kind: str, tear: Callable[[], object]) -> None:
    """SIGTERM: a run that trains saves and ends; before that nothing would be lost."""
    os.kill(os.getpid(), signal.SIGTERM)


class Runs:
    """One run after the other in `root`, each through lives, and each held against the whole one."""

    def __init__(self, root: Path, overrides: list[str], seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        (root / "corpus").mkdir(parents=True)
        self.cfg = compose_run(write_texts(root / "corpus"), *CONFIG, *overrides)
        self.step = mmap.mmap(-1, 8)  # shared with the lives: updates made
        self.kinds = mmap.mmap(-1, 16)
        self.report = Counter(runs=0)
        self.met: Counter[str] = Counter()
        self.number = 0
        self.asked = False  # whether runs are asked to stop, and save then
        whole = root / "whole"
        began = time.perf_counter()
        assert self.live(whole, None) == DONE, (root / "log").read_text()
        self.seconds = time.perf_counter() - began
        self.whole = read_run(whole)

    @property
    def folder(self) -> Path:
        return self.root / f"run-{self.number}"

    def live(self, folder: Path, events: Events | None, until: float | None = None) -> int:
        """Live once: the exit code, or the number of the signal as a negative one."""
        self.step[:8] = bytes(8)
        pid = os.fork()
        if pid == 0:
            os._exit(self._be(folder, events))
        if until is not None:
            time.sleep(until)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _be(self, folder: Path, events: Events | None) -> int:
        handle = os.open(self.root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1), os.dup2(handle, 2)
        torch.set_num_threads(1)
        make_time_of_steps(self.step)
        if events is not None:
            strike = events.strike

            def noted(kind, tear):
                self.kinds[:16] = kind.encode().ljust(16)
                strike(kind, tear)

            events.strike = noted
            events.listen()
        try:
            if (folder / "checkpoints/latest").exists():
                train.resume_run(folder)
            else:
                train.start_run(self.cfg, folder)
            return DONE
        except ZooError as error:
            print(f"zoo: error: {error}", file=sys.stderr)
            return DONE if "is finished" in str(error) else FAILED  # killed after its result was written
        except Terminated:
            return STOPPED
        except BaseException:
            traceback.print_exc()
            return BROKEN

    def meet(self, strike: Callable, *expected: int, everywhere: bool = False, turn: int | None = None) -> bool:
        """Let the present run meet something at an event; True when it did, False when it ended before."""
        turn = turn or self.random.randint(1, 110)
        code = self.live(self.folder, Events(self.folder, turn, strike, everywhere))
        return self.judge(code, *expected)

    def judge(self, code: int, *expected: int) -> bool:
        if code == DONE:
            self.finish()
            return False
        assert code in expected, f"{code}, {expected} expected:\n{(self.root / 'log').read_text()[-3000:]}"
        check_newest(self.folder, int.from_bytes(self.step[:8], "little"))
        return True

    def finish(self) -> None:
        """Hold a run that has ended against the whole one, and begin another."""
        # a draft of the page stays where the signal came after the run's end, which nothing goes on from
        found = {name: each for name, each in read_run(self.folder).items() if not name.startswith(".index.html.")}
        whole = self.whole
        if self.asked:  # a stop saves too: before the last checkpoint the one that is kept may be of another step
            newest = max(name.split("/")[1] for name in whole if "/step-" in name)
            found, whole = (
                {name: content for name, content in each.items() if "/step-" not in name or newest in name}
                for each in (found, whole)
            )
        assert found.keys() == whole.keys(), found.keys() ^ whole.keys()
        for name, content in whole.items():
            assert found[name] == content, f"{name} of {self.folder} is not that of the run that nothing happened to"
        shutil.rmtree(self.folder)
        self.number += 1
        self.report["runs"] += 1

    def complete(self) -> None:
        """Let the present run come to its end."""
        if self.folder.exists():
            self.judge(self.live(self.folder, None), DONE)


def write_texts(folder: Path) -> Path:
    """Write so little text that a run is in its second epoch before its end."""
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"the cat {number} is {number * 3}\n" * 8)
    return folder


def make_time_of_steps(step: mmap.mmap) -> None:
    """Let a token take a millisecond and all memory a gibibyte, and note each update."""

    def lap(clock: Clock, tokens: int) -> float:
        clock.seconds, clock.pace = tokens / 1000, 1000.0
        return clock.pace

    update = loop.update

    def noted(run):
        found = update(run)
        step[:8] = run.step.to_bytes(8, "little")
        return found

    Clock.lap, loop.update = lap, noted
    ThreadWatch.state = lambda watch: {}
    metric_lines.read_used_memory = lambda device: 1 << 30
    train.draw_losses = lambda lines, title, file: write_text(file, title)  # matplotlib takes most of a life
    building.find_peak = lambda device, precision: Peak(1e12, "fixed")


def check_newest(folder: Path, made: int) -> None:
    """Check that the newest checkpoint is whole, and that no more than one interval of work is lost."""
    if not (folder / "checkpoints/latest").exists():
        assert made <= EVERY, f"{made} updates, and no checkpoint"
        return
    newest = runs.find(folder)
    for file in ("model.safetensors", "training.safetensors"):
        read_header(newest / file)
    step = store.read_counters(newest)["step"]
    assert made - step <= EVERY, f"{made} updates, and the newest checkpoint is of {step}"


def read_run(folder: Path) -> dict[str, bytes]:
    """What must be equal: all files of a run but those that name its folder or its starts, and pictures."""
    other = ("result.json", "config.yaml", "loss.png", "index.html", "environment.json", "lock")
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in other)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def kill_often(lives: Runs, kills: int) -> None:
    """Kill so many lives: three of four at an event of a save, the others at any time."""
    while lives.report["kills"] < kills:
        if lives.report["kills"] % 4:
            if lives.meet(kill, -signal.SIGKILL):
                kind = lives.kinds[:16].decode().strip()
                lives.met[kind] += 1
                lives.report.update(kills=1, in_a_save=1)
        else:
            code = lives.live(lives.folder, None, until=lives.random.uniform(0, lives.seconds))
            lives.report["kills"] += lives.judge(code, -signal.SIGKILL)
    lives.complete()


def main() -> None:
    root, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    began = time.perf_counter()
    lives = Runs(root, options.get("overrides", []), options.get("seed", 0))
    if kills := options.get("kills"):
        kill_often(lives, kills)
    for name in options.get("errors", []):
        for turn in range(*options["turns"]):
            everywhere = options.get("everywhere", False)
            lives.report[name] += lives.meet(fail(getattr(errno, name)), FAILED, turn=turn, everywhere=everywhere)
        lives.complete()
    lives.asked = "stops" in options
    for turn in range(*options.get("stops", (0, 0))):
        lives.report["stops"] += lives.meet(ask_to_stop, STOPPED, -signal.SIGTERM, turn=turn, everywhere=True)
    lives.complete()
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({**lives.report, "met": lives.met, "whole_seconds": round(lives.seconds, 2), "seconds": seconds}))


if __name__ == "__main__":
    main()
