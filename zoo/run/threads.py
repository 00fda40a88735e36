"""Choose torch's number of threads on a CPU by a timed probe, and again while a run goes on.

OpenMP's threads spin at the end of every parallel loop until all are done. If another program occupies a core, each
loop takes as long as the thread on that core: two threads, one on a busy core, are up to five times slower than one. So
the fastest number of threads depends on other programs, and is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from zoo.lazy import F, torch

STATED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that set the number of threads; if either is set, nothing is measured or changed."""

SPEND = 0.12  # seconds per probe
ROUNDS = 4  # turns of each candidate, as the load of other programs varies
MARGIN = 1.15  # another number of threads must be faster by more than this factor: probes are this inexact
ROWS, WIDTH = 128, 256  # of the probe's products; ROWS for each thread, as more cores mean larger steps

FALLEN = 0.7  # fraction of the best pace seen, below which cores are probably shared
WAIT, LONGEST_WAIT = 5.0, 60.0  # seconds between two probes of a run: at first, and at most (it doubles if unchanged)


@dataclass(frozen=True)
class ThreadChoice:
    """The fastest number of threads; `most` is torch's own number. `gain` is the speed of `threads` ÷ that of
    `most`."""

    threads: int
    most: int
    gain: float = 1.0

    def __str__(self) -> str:
        if self.threads == self.most:
            return f"{self.most} threads again: they are the fastest now"
        found = f"{self.gain:.1f} times as fast while other programs use the cores"
        return f"{_counted(self.threads)} of {self.most}, {found} (OMP_NUM_THREADS={self.most} keeps {self.most})"


def _counted(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"


def threads_are_stated() -> bool:
    """Whether the user has set the number of threads."""
    return any(os.environ.get(name) for name in STATED)


def list_candidates(most: int) -> list[int]:
    """List the numbers of threads to try: all, all but one, and halves down to one (8 → [8, 7, 4, 2, 1])."""
    halves, threads = [], most // 2
    while threads >= 1:
        halves.append(threads)
        threads //= 2
    return sorted({most, max(most - 1, 1), *halves}, reverse=True)


def choose_fastest(rates: Mapping[int, float], most: int, now: int) -> ThreadChoice:
    """Choose the number with most laps per second; keep `now` unless another is at least `MARGIN` times as fast."""
    best = max(rates, key=lambda threads: rates[threads])
    if now in rates and rates[best] < MARGIN * rates[now]:
        best = now
    return ThreadChoice(best, most, rates[best] / rates[most])


def measure_rates(numbers: list[int], lap: Callable[[], object], spend: float = SPEND) -> dict[int, float]:
    """Measure laps per second with each number of threads, taking turns; restore torch's number. A rate is the mean of
    all laps rather than the rate of the best one, because a run would also wait for busy cores."""
    turn = spend / ROUNDS / len(numbers)
    laps, seconds = dict.fromkeys(numbers, 0), dict.fromkeys(numbers, 0.0)
    with keep_threads():
        for _ in range(ROUNDS):
            for threads in numbers:
                torch.set_num_threads(threads)
                lap()  # the first lap starts or ends OpenMP's threads
                start = time.perf_counter()
                while (passed := time.perf_counter() - start) < turn:
                    lap()
                    laps[threads] += 1
                seconds[threads] += passed
    return {threads: max(laps[threads], 1) / seconds[threads] for threads in numbers}


def make_probe(most: int) -> Callable[[], object]:
    """Make a function that computes like a training step: products, elementwise operations and a sum, each a parallel
    loop."""
    rows = torch.ones(ROWS * most, WIDTH)
    weight, out, scratch = torch.ones(WIDTH, WIDTH), torch.empty_like(rows), torch.empty_like(rows)

    def lap() -> None:
        with torch.inference_mode():
            torch.mm(rows, weight, out=out)
            scratch.copy_(out)
            F.silu(scratch, inplace=True)
            scratch.mul_(rows).sum()
            torch.mm(scratch, weight, out=out)
            out.add_(rows, alpha=0.5)

    return lap


@contextmanager
def keep_threads() -> Iterator[None]:
    """Restore torch's number of threads at the end of the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


_chosen: ThreadChoice | None = None
"""The last choice that `use_fastest_threads` set in this process."""


def most_threads() -> int:
    """Return torch's own number of threads: the present one, or the one before `use_fastest_threads` lowered it."""
    now = torch.get_num_threads()
    return _chosen.most if _chosen is not None and _chosen.threads == now else now


def use_fastest_threads(device: torch.device) -> ThreadChoice | None:
    """Set torch's number of threads to the fastest now. Returns the choice if it differs from before, else None. A
    later call raises the number again if it was lowered for a busy program that has ended. Does nothing on other
    devices than a CPU, with one thread, or if the user has set the number."""
    global _chosen
    choice = ThreadWatch(device).begin()
    _chosen = choice or _chosen
    return choice


class ThreadWatch:
    """Chooses the number of threads for a run, and probes again when the pace falls or may have recovered."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most_threads()
        self.watches = device.type == "cpu" and self.most > 1 and not threads_are_stated()
        self._clock = clock
        self._wait, self._looked = WAIT, clock()
        self.best = 0.0
        """The best pace so far, in tokens per second."""

    def begin(self) -> ThreadChoice | None:
        """Choose before the first step. Returns the choice if it changed the number."""
        return self._look() if self.watches else None

    def follow(self, pace: float) -> ThreadChoice | None:
        """Note a pace in tokens per second, and probe again if that may help. Returns the choice if it changed."""
        self.best = max(self.best, pace)
        helps = pace < FALLEN * self.best or torch.get_num_threads() < self.most
        if not self.watches or not helps or self._clock() - self._looked < self._wait:
            return None
        return self._look()

    def end(self) -> None:
        """Restore torch's own number of threads."""
        if self.watches:
            torch.set_num_threads(self.most)

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint. Resuming with another number of threads would sum in another order."""
        return {"threads": torch.get_num_threads(), "best_pace": self.best}

    def restore(self, state: Mapping[str, float]) -> None:
        """Set a checkpoint's number of threads, at most this machine's. Does nothing on other devices than a CPU, with
        one thread, or if the user has set the number."""
        if self.watches and state:
            torch.set_num_threads(min(int(state["threads"]), self.most))
            self.best = state["best_pace"]

    def _look(self) -> ThreadChoice | None:
        """Measure which number of threads computes fastest now, in about `SPEND` seconds, and set it."""
        now = torch.get_num_threads()
        rates = measure_rates(list_candidates(self.most), make_probe(self.most))
        choice = choose_fastest(rates, self.most, now)
        changed = choice.threads != now
        self._wait = WAIT if changed else min(2 * self._wait, LONGEST_WAIT)
        self._looked = self._clock()
        if not changed:
            return None
        torch.set_num_threads(choice.threads)
        return choice
