# N rows of a weight (d_out), K its columns (d_in)
"""Time the ways to multiply for shapes and numbers of rows, store the timings per processor, and choose the fastest
way."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from zoo.disk import write_text
from zoo.errors import ZooError
from zoo.lazy import torch
from zoo.paths import find_cache_folder
from zoo.run.linear.base import EXACT, Processor, Way
from zoo.run.linear.ways import WAYS, list_able
from zoo.run.threads import keep_threads

BUCKETS = (1, 2, 4, 8, 16, 32, 128)
"""Numbers of rows that are timed; the last one stands for a prompt."""

ORDER = (1, 8, 128, 32, 2, 16, 4)  # the order in which BUCKETS are timed

GAIN = 1.08  # a packed copy is made only if it is faster than the plain weight by more than this factor
PROMPT = 0.25  # weight of a prompt's log time; the mean log time of decoding steps has weight 1

SPEND = 2.0  # seconds for all shapes of a model
LONGEST = 3  # factor by which SPEND may be exceeded if other programs use the cores
SPAN, TOGETHER = 12e6, 48e6  # minimum bytes of weights: of one lap, and of one lap of every shape together. A lap must
# find its weights outside the CPU's caches, as a pass of a model does
WIDEST = 50e6  # bytes of the largest weight: of a vocabulary's product only the first rows are timed
FEW = 8  # rows up to which a lap reads its whole span, as reading weights then dominates
FAR = 20  # a way that is slower for one row by this factor is not timed for more rows: oneDNN has no fast code for some
# dtypes, and a prompt would take minutes

WATCH, SHARE = 0.03, 0.9  # seconds to watch a core for, and the fraction of it that an undisturbed process gets

IGNORE = "ZOO_LINEAR_TIMES"
"""Environment variable. If it is `ignore`, stored timings are neither read nor written."""

VERSION = 4

Times = Mapping[str, Mapping[int, float]]
"""Seconds per product, by way and number of rows (bucket)."""


class LinearShape(NamedTuple):
    """The shape of a product: N and K of its weight, and torch's name of its dtype."""

    n: int
    k: int
    dtype: str

    @property
    def key(self) -> str:
        return f"{self.n}x{self.k} {self.dtype}"


def time_shapes(shapes: Iterable[LinearShape], processor: Processor, spend: float = SPEND) -> dict[LinearShape, Times]:
    """Return the seconds of each way for each shape: from disk, else timed now within about `spend` seconds in all. If
    other programs use the cores, one thread is timed, and its timings are not stored."""
    wanted = list(dict.fromkeys(shapes))
    ignored = os.environ.get(IGNORE, "").lower() == "ignore"
    known = {} if ignored else _read().get(processor.key, {})
    found: dict[LinearShape, Times] = {}
    for shape in wanted:
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # missing or damaged: timed anew
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
    """Whether other programs use the cores now: a busy loop then gets less processor time than wall time.

    Timings of several threads mean nothing then, because threads wait for each other. One thread is timed by its own
    processor time.
    """
    began, had = time.perf_counter(), time.thread_time()
    while (passed := time.perf_counter() - began) < WATCH:
        pass
    return time.thread_time() - had < SHARE * passed


def _pick_clock() -> Callable[[], float]:
    """Return the clock of processor time if torch has one thread and the clock is precise enough, else that of wall
    time."""
    fine = time.get_clock_info("thread_time").resolution < 1e-4
    return time.thread_time if torch.get_num_threads() == 1 and fine else time.perf_counter


# ---------------------------------------------------------------- timing


def _time_together(shapes: Sequence[LinearShape], processor: Processor, spend: float) -> dict[LinearShape, Times]:
    """Time the ways of all shapes in turns until `spend` seconds are over; return the minimum for each bucket.

    The minimum, not the median, because stored timings must not depend on other programs, nor on the first product, for
    which oneDNN creates its primitive. The most decisive buckets come first. Every way is timed twice on one row,
    whatever that takes. The other buckets of a way that is too slow (FAR) are skipped.
    """
    span = max(SPAN, TOGETHER / len(shapes))
    ways = {shape: list_able(EXACT, (shape.n, shape.k), shape.dtype, processor) for shape in shapes}
    laps = {(shape, name): _Lap(WAYS[name], shape, span) for shape in shapes for name in ways[shape]}
    best: dict[LinearShape, dict[str, dict[int, float]]] = {shape: {} for shape in shapes}
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
    """Products of one shape by one way, over copies of a random weight that take about `span` bytes in all."""

    def __init__(self, way: Way, shape: LinearShape, span: float) -> None:
        self.way, dtype = way, getattr(torch, shape.dtype)
        n = max(16, min(shape.n, int(WIDEST / 4 / shape.k)) // 16 * 16)
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(n, shape.k, generator=draw).to(dtype)
        with torch.inference_mode():
            self.packed = [way.prepare(weight.clone(), None) for _ in range(max(1, round(span / (4 * n * shape.k))))]
        self.x = {rows: torch.randn(rows, shape.k, generator=draw).to(dtype) for rows in BUCKETS}

    def run(self, rows: int) -> float:
        """Multiply `rows` rows, and return the seconds per weight."""
        packed = self.packed if rows <= FEW else self.packed[:1]
        x, multiply, clock = self.x[rows], self.way.run, _pick_clock()
        with torch.inference_mode():
            start = clock()
            for each in packed:
                multiply(x, each)
            return (clock() - start) / len(packed)


def choose_way(times: Times, rows: Iterable[int] = BUCKETS[:-1]) -> str:
    """Choose the fastest way for the expected numbers of rows `rows` and for a prompt. A way that packs the weight must
    be faster by more than the error of timings (GAIN)."""

    def seconds(name: str, count: int) -> float:
        """Return the log of the seconds for the nearest number of rows that was timed."""
        of = times[name]
        return math.log(of[min(of, key=lambda each: abs(math.log(each / count)))])

    expected = list(rows)

    def cost(name: str) -> float:
        mean = sum(seconds(name, each) for each in expected) / len(expected)
        return mean + PROMPT * seconds(name, BUCKETS[-1]) + (math.log(GAIN) if WAYS[name].packs else 0.0)

    return min(times, key=cost)


# ---------------------------------------------------------------- the file


def times_file() -> Path:
    """Return the path of the timings file, in the cache folder."""
    return find_cache_folder() / "linear.json"


def _read() -> dict[str, Any]:
    """Read the stored timings; empty if the file is missing, damaged or of another version."""
    try:
        data = json.loads(times_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(data, dict) and data.get("version") == VERSION and isinstance(data.get("times"), dict)
    return data["times"] if sound else {}


def _keep(key: str, fresh: Mapping[LinearShape, Times]) -> None:
    """Add timings to the file. If it cannot be written, the next process times anew."""
    kept = _read()
    kept[key] = {**kept.get(key, {}), **{shape.key: times for shape, times in fresh.items()}}
    with suppress(OSError, ZooError):
        times_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(times_file(), json.dumps({"version": VERSION, "times": kept}, indent=1))
