# N rows of a weight (d_out), K its columns (d_in)
"""Time the ways to multiply, for a shape and numbers of rows, and keep what was found for each processor."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any, NamedTuple

from zoo.disk import write_text
from zoo.errors import ZooError
from zoo.lazy import F, torch
from zoo.paths import find_cache_folder
from zoo.run.linear.base import EXACT, Processor, Way
from zoo.run.linear.ways import WAYS, list_ways, refuse
from zoo.run.threads import keep_threads

BUCKETS = (1, 2, 4, 8, 16, 32, 128)
"""Numbers of rows that are timed. A product of R rows goes the way of the next bucket, one of more than 32 that of the
last: a prompt's."""

ORDER = (1, 8, 128, 32, 2, 16, 4)  # in which buckets are timed

RESTORED = "restored"
"""The weight is unpacked for each product, and multiplied by F.linear: it pays from some number of rows on."""

SPEND = 2.0  # seconds for all the shapes of a model
LONGEST = 3  # times as long that this may take beside other programs
SPAN, TOGETHER = 12e6, 48e6  # bytes of weights that a lap reads, and that all shapes' laps of one way read at least:
# by the time that a lap comes again its weights must have left the caches, as in a model
WIDEST = 50e6  # bytes of the largest weight: a vocabulary's product is timed by its first rows
FEW = 8  # rows up to which the whole span is multiplied, as reading it is what takes the time
SLOWER, FAR, LONG = 5, 20, 1e-3
"""A way SLOWER times as slow as another is not timed again for these rows. One that for one row is FAR times as slow,
and takes LONG seconds, is given up: some processors have no fast code for a precision, and a prompt would take minutes.
"""

WATCH, SHARE = 0.03, 0.9  # seconds that a core is watched, and the part of it that a process alone would get

IGNORE = "ZOO_LINEAR_TIMES"
"""A variable that, set to `ignore`, makes a process time anew, and keep nothing."""

VERSION = 3

Times = Mapping[str, Mapping[int, float]]
"""Seconds of each way, by bucket."""


class Shape(NamedTuple):
    """One kind of product: N and K of its weight, torch's name of its dtype, the precision of its weights."""

    n: int
    k: int
    dtype: str
    precision: str = EXACT

    @property
    def key(self) -> str:
        return f"{self.n}x{self.k} {self.dtype} {self.precision}"


def time_shapes(shapes: Iterable[Shape], processor: Processor, spend: float = SPEND) -> dict[Shape, Times]:
    """Find how long each way takes for each shape: as kept on disk, else timed now, in `spend` seconds for all."""
    wanted = list(dict.fromkeys(shapes))
    ignored = os.environ.get(IGNORE, "").lower() == "ignore"
    known = {} if ignored else _read().get(processor.key, {})
    found: dict[Shape, Times] = {}
    for shape in wanted:
        with suppress(KeyError, TypeError, ValueError, AttributeError):  # not there, or damaged: timed anew
            kept = {way: {int(rows): float(each) for rows, each in of.items()} for way, of in known[shape.key].items()}
            if kept and all(way in WAYS or way == RESTORED for way in kept):
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

    The least, not the median: what is kept must not depend on what else ran. The buckets that decide most come first.
    Every way has a lap of one row, however long that takes; one that is far slower there is not tried at more rows, and
    has no place in the result. Where even one lap of each takes too long, the other buckets are left out.
    """
    laps = {(shape, name): lap for shape in shapes for name, lap in _make_laps(shape, processor, len(shapes)).items()}
    best: dict[Shape, dict[str, dict[int, float]]] = {shape: {} for shape in shapes}
    for shape, name in laps:
        best[shape][name] = {}
    turns = [(rows, key) for rows in ORDER for _ in ("warm up", "run") for key in laps if takes(key[1], rows)]
    first = sum(rows == ORDER[0] for rows, _ in turns)
    warm, clock, began = set(), _pick_clock(), time.perf_counter()
    end = clock() + spend
    for number, (rows, (shape, name)) in enumerate(cycle(turns)):
        if number >= first and (clock() >= end or time.perf_counter() >= began + LONGEST * spend):
            break
        mine, others = best[shape][name], best[shape].values()
        if _is_given_up(others, mine) or _is_slower(others, mine, rows, SLOWER):
            continue
        if (rows, shape, name) in warm:
            took = laps[shape, name].run(rows)
            mine[rows] = min(took, mine.get(rows, took))
        else:  # all others come between this and the lap, which shall not find its weights in the caches
            laps[shape, name].warm_up(rows)
            warm.add((rows, shape, name))
    return {
        shape: {name: of for name, of in ways.items() if of and not _is_given_up(ways.values(), of)}
        for shape, ways in best.items()
    }


def _make_laps(shape: Shape, processor: Processor, among: int) -> dict[str, _Lap]:
    """Make a lap for each way of one shape, `among` so many that take turns."""
    span = max(SPAN, TOGETHER / among)
    laps = {name: _Lap(way, shape, span) for name, way in _candidates(shape, processor).items()}
    restoring = _pick_restoring(laps)
    return {**laps, RESTORED: restoring} if restoring else laps


def takes(name: str, rows: int) -> bool:
    """Tell whether a way is used for so many rows."""
    if name == RESTORED:
        return rows > FEW
    most = WAYS[name].most_rows
    return most is None or rows <= most


def _is_slower(ways: Iterable[Mapping[int, float]], mine: Mapping[int, float], rows: int, times: float) -> bool:
    """Tell whether a way was so many times slower for these rows than another of its shape."""
    return rows in mine and mine[rows] > times * min(of[rows] for of in ways if rows in of)


def _is_given_up(ways: Iterable[Mapping[int, float]], mine: Mapping[int, float]) -> bool:
    """Tell whether a way is so slow for one row that it is used for no number of rows."""
    return mine.get(ORDER[0], 0.0) > LONG and _is_slower(ways, mine, ORDER[0], FAR)


def _candidates(shape: Shape, processor: Processor) -> dict[str, Way]:
    ways = [way for way in list_ways(shape.precision) if not way.on_request]
    return {way.name: way for way in ways if refuse(way, (shape.n, shape.k), shape.dtype, 1, processor) is None}


class _Lap:
    """Products of one shape by one way, over as many weights as its span holds. Numbers do not matter: all are one
    random weight's, copied."""

    def __init__(self, way: Way, shape: Shape, span: float) -> None:
        self.way, self.shape = way, shape
        self.dtype = getattr(torch, shape.dtype)
        n = max(16, min(shape.n, int(WIDEST / 4 / shape.k)) // 16 * 16)
        copies = max(1, round(span / (4 * n * shape.k)))
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(n, shape.k, generator=draw).to(self.dtype)
        with torch.inference_mode():
            self.packed = {0: [way.prepare(weight.clone(), None, 1) for _ in range(copies)]}
        self.weight = weight if way.one_size else None
        self.x = {rows: torch.randn(rows, shape.k, generator=draw).to(self.dtype) for rows in BUCKETS}

    def warm_up(self, rows: int) -> None:
        """Multiply once: the first product of a size makes oneDNN's primitive."""
        with torch.inference_mode():
            self.way.run(self.x[rows], self._pack_for(rows)[0])

    def run(self, rows: int) -> float:
        """Multiply, and give the seconds for each weight."""
        packed = self._pack_for(rows)
        if rows > FEW:
            packed = packed[:1]
        x, multiply, clock = self.x[rows], self.way.run, _pick_clock()
        with torch.inference_mode():
            start = clock()
            for each in packed:
                multiply(x, each)
            return (clock() - start) / len(packed)

    def _pack_for(self, rows: int) -> list[Any]:
        if self.weight is None:
            return self.packed[0]
        if rows not in self.packed:
            with torch.inference_mode():
                self.packed = {rows: [self.way.prepare(self.weight, None, rows) for _ in self.packed.popitem()[1]]}
        return self.packed[rows]


class _Restored(_Lap):
    """The product that unpacks the weight first."""

    def __init__(self, lap: _Lap) -> None:
        self.__dict__.update(lap.__dict__)
        self.way = _Restoring(lap.way)


class _Restoring(Way):
    name = RESTORED

    def __init__(self, way: Way) -> None:
        self.way = way

    def run(self, x: Any, packed: Any) -> Any:
        return F.linear(x, self.way.restore(packed, x.dtype))


def _pick_restoring(laps: Mapping[str, _Lap]) -> _Restored | None:
    """The first lap whose weight can be unpacked: unpacking costs about the same for all of a precision."""
    for lap in laps.values():
        if lap.way.packs and lap.way.restores:
            return _Restored(lap)
    return None


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
