# N rows of a weight (d_out), K its columns (d_in)
"""Time the ways to multiply, for a shape and numbers of rows; keep what was found for each processor, and choose by
it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any, NamedTuple

from zoo.disk import write_text
from zoo.errors import ZooError
from zoo.lazy import torch
from zoo.paths import find_cache_folder
from zoo.run.linear.base import EXACT, Processor, Way
from zoo.run.linear.ways import WAYS, list_able
from zoo.run.threads import keep_threads

BUCKETS = (1, 2, 4, 8, 16, 32, 128)
"""Numbers of rows that are timed; the last are a prompt's."""

ORDER = (1, 8, 128, 32, 2, 16, 4)  # in which they are timed

GAIN = 1.08  # how many times faster than the plain weight a packed copy must be to be made
PROMPT = 0.25  # the weight of a prompt's rows beside that of a decoding step's

SPEND = 2.0  # seconds for all the shapes of a model
LONGEST = 3  # times as long that this may take beside other programs
SPAN, TOGETHER = 12e6, 48e6  # bytes of weights that a lap reads, and that all shapes' laps of one way read at least:
# by the time that a lap comes again its weights must have left the caches, as in a model
WIDEST = 50e6  # bytes of the largest weight: a vocabulary's product is timed by its first rows
FEW = 8  # rows up to which the whole span is multiplied, as reading it is what takes the time
FAR = 20  # a way as many times as slow as another for one row is not timed for more: oneDNN has no fast code for some
# dtypes, and a prompt would take minutes

WATCH, SHARE = 0.03, 0.9  # seconds that a core is watched, and the part of it that a process alone would get

IGNORE = "ZOO_LINEAR_TIMES"
"""A variable that, set to `ignore`, makes a process time anew, and keep nothing."""

VERSION = 4

Times = Mapping[str, Mapping[int, float]]
"""Seconds of each way, by bucket."""


class Shape(NamedTuple):
    """One kind of product: N and K of its weight, and torch's name of its dtype."""

    n: int
    k: int
    dtype: str

    @property
    def key(self) -> str:
        return f"{self.n}x{self.k} {self.dtype}"


def time_shapes(shapes: Iterable[Shape], processor: Processor, spend: float = SPEND) -> dict[Shape, Times]:
    """Find how long each way takes for each shape: as kept on disk, else timed now, in `spend` seconds for all."""
    wanted = list(dict.fromkeys(shapes))
    ignored = os.environ.get(IGNORE, "").lower() == "ignore"
    known = {} if ignored else _read().get(processor.key, {})
    found: dict[Shape, Times] = {}
    for shape in wanted:
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # not there, or damaged: timed anew
            kept = {way: {int(rows): float(each) for rows, each in of.items()} for way, of in known[shape.key].items()}
            if kept and all(way in WAYS and of for way, of in kept.items()):
                found[shape] = kept
    missing = [shape for shape in wanted if shape not in found]
    if not missing:
        return found
    alone = torch.get_num_threads() == 1
    crowded = not alone and is_crowded()
    with keep_threads():
        if crowded:
            torch.set_num_threads(1)
        fresh = _time_together(missing, processor, spend)
    if not ignored and (alone or not (crowded or is_crowded())):
        _keep(processor.key, fresh)
    return found | fresh


def is_crowded() -> bool:
    """Tell whether other programs use the cores now: a busy loop then gets less of one than the time that passes.

    Threads wait for each other, so that timings of several mean nothing there; one thread's are taken by the time that
    it had a core.
    """
    began, had = time.perf_counter(), time.thread_time()
    while (passed := time.perf_counter() - began) < WATCH:
        pass
    return time.thread_time() - had < SHARE * passed


def _pick_clock() -> Callable[[], float]:
    """The clock that counts one thread's own time, where it is fine enough; else, and for several, the wall's."""
    fine = time.get_clock_info("thread_time").resolution < 1e-4
    return time.thread_time if torch.get_num_threads() == 1 and fine else time.perf_counter


# ---------------------------------------------------------------- timing


def _time_together(shapes: Sequence[Shape], processor: Processor, spend: float) -> dict[Shape, Times]:
    """Time the ways of all shapes, taking turns, until `spend` seconds are over: the least of each.

    The least, not the median: what is kept must not depend on what else ran, nor on a first product, for which oneDNN
    makes its primitive. The buckets that decide most come first, and every way has a lap of one row, however long that
    takes; where it takes too long, other buckets are left out.
    """
    span = max(SPAN, TOGETHER / len(shapes))
    ways = {shape: list_able(EXACT, (shape.n, shape.k), shape.dtype, processor) for shape in shapes}
    laps = {(shape, name): _Lap(WAYS[name], shape, span) for shape in shapes for name in ways[shape]}
    best: dict[Shape, dict[str, dict[int, float]]] = {shape: {} for shape in shapes}
    turns = [(rows, key) for rows in ORDER for _ in range(2) for key in laps]
    clock, began = _pick_clock(), time.perf_counter()
    end = clock() + spend
    for number, (rows, (shape, name)) in enumerate(cycle(turns)):
        if number >= 2 * len(laps) and (clock() >= end or time.perf_counter() >= began + LONGEST * spend):
            return {shape: dict(ways) for shape, ways in best.items()}
        mine = best[shape].setdefault(name, {})
        if rows == ORDER[0] or mine[ORDER[0]] <= FAR * min(of[ORDER[0]] for of in best[shape].values()):
            mine[rows] = min(laps[shape, name].run(rows), mine.get(rows, math.inf))
    raise AssertionError("a cycle does not end")


class _Lap:
    """Products of one shape by one way, over as many weights as its span holds. Numbers do not matter: all are one
    random weight's, copied."""

    def __init__(self, way: Way, shape: Shape, span: float) -> None:
        self.way, dtype = way, getattr(torch, shape.dtype)
        n = max(16, min(shape.n, int(WIDEST / 4 / shape.k)) // 16 * 16)
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(n, shape.k, generator=draw).to(dtype)
        with torch.inference_mode():
            self.packed = [way.prepare(weight.clone(), None) for _ in range(max(1, round(span / (4 * n * shape.k))))]
        self.x = {rows: torch.randn(rows, shape.k, generator=draw).to(dtype) for rows in BUCKETS}

    def run(self, rows: int) -> float:
        """Multiply, and give the seconds for each weight."""
        packed = self.packed if rows <= FEW else self.packed[:1]
        x, multiply, clock = self.x[rows], self.way.run, _pick_clock()
        with torch.inference_mode():
            start = clock()
            for each in packed:
                multiply(x, each)
            return (clock() - start) / len(packed)


def choose_way(times: Times, rows: Iterable[int] = BUCKETS[:-1]) -> str:
    """Choose the way that takes the least time for `rows`, the numbers of rows expected, and for a prompt. One that
    packs the weight must gain more than a timing errs."""

    def seconds(name: str, count: int) -> float:
        """Those of the nearest bucket that was timed, as a logarithm."""
        of = times[name]
        return math.log(of[min(of, key=lambda each: abs(math.log(each / count)))])

    expected = list(rows)

    def cost(name: str) -> float:
        mean = sum(seconds(name, each) for each in expected) / len(expected)
        return mean + PROMPT * seconds(name, BUCKETS[-1]) + (math.log(GAIN) if WAYS[name].packs else 0.0)

    return min(times, key=cost)


# ---------------------------------------------------------------- the file


def times_file() -> Any:
    """Find the file of timings, in the folder of caches."""
    return find_cache_folder() / "linear.json"


def _read() -> dict[str, Any]:
    """Read what is kept; nothing where the file is missing, damaged or another version's."""
    try:
        data = json.loads(times_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(data, dict) and data.get("version") == VERSION and isinstance(data.get("times"), dict)
    return data["times"] if sound else {}


def _keep(key: str, fresh: Mapping[Shape, Times]) -> None:
    """Add timings to the file. A cache that cannot be written is no error: the next process times anew."""
    kept = _read()
    kept[key] = {**kept.get(key, {}), **{shape.key: times for shape, times in fresh.items()}}
    with suppress(OSError, ZooError):
        times_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(times_file(), json.dumps({"version": VERSION, "times": kept}, indent=1))
