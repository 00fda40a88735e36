# N rows of a weight (d_out), K its columns (d_in)
"""Time the ways to multiply, for a shape and numbers of rows, and keep what was found for each processor."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import cycle
from typing import Any, NamedTuple

from zoo.disk import write_text
from zoo.errors import ZooError
from zoo.lazy import F, torch
from zoo.paths import find_cache_folder
from zoo.run.linear.base import EXACT, Processor, Way
from zoo.run.linear.ways import WAYS, list_ways, refuse

BUCKETS = (1, 2, 4, 8, 16, 32, 128)
"""Numbers of rows that are timed. A product of R rows goes the way of the next bucket, one of more than 32 that of the
last: a prompt's."""

ORDER = (1, 8, 128, 32, 2, 16, 4)  # in which buckets are timed

RESTORED = "restored"
"""The weight is unpacked for each product, and multiplied by F.linear: it pays from some number of rows on."""

SPEND = 2.0  # seconds for all the shapes of a model
SPAN = 12e6  # bytes of weights multiplied in turn: more than a core's caches hold, as a model's weights are
FEW = 8  # rows up to which the whole span is multiplied, as reading it is what takes the time
CROWDED = 20  # times a second that another program took the core: such timings are not kept

IGNORE = "ZOO_LINEAR_TIMES"
"""A variable that, set to `ignore`, makes a process time anew, and keep nothing."""

VERSION = 1

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
    began, disturbed = time.perf_counter(), _count_preemptions()
    fresh = {shape: _time_shape(shape, processor, spend / len(missing)) for shape in missing}
    crowded = _count_preemptions() - disturbed > CROWDED * (time.perf_counter() - began)
    if not ignored and not crowded:
        _keep(processor.key, fresh)
    return found | fresh


def _count_preemptions() -> int:
    """Count how often another program took a core from this process."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


# ---------------------------------------------------------------- timing


def _time_shape(shape: Shape, processor: Processor, spend: float) -> Times:
    """Time the ways of one shape, taking turns, until `spend` seconds are over: the least of each.

    The least, not the median: what is kept must not depend on what else ran. The buckets that decide most come first,
    and where even one lap of each takes too long, the others are left out.
    """
    laps = {name: _Lap(way, shape) for name, way in _candidates(shape, processor).items()}
    if restoring := _pick_restoring(laps):
        laps[RESTORED] = restoring
    best: dict[str, dict[int, float]] = {name: {} for name in laps}
    turns = cycle([(rows, name) for rows in ORDER for name in laps if takes(name, rows)])
    end = time.perf_counter() + spend
    while time.perf_counter() < end:
        rows, name = next(turns)
        if not _hopeless(best, name, rows):
            took = laps[name].run(rows)
            best[name][rows] = min(took, best[name].get(rows, took))
    return {name: of for name, of in best.items() if of}


def takes(name: str, rows: int) -> bool:
    """Tell whether a way is used for so many rows."""
    if name == RESTORED:
        return rows > FEW
    most = WAYS[name].most_rows
    return most is None or rows <= most


def _hopeless(best: Mapping[str, Mapping[int, float]], name: str, rows: int) -> bool:
    """Tell whether a way has been five times slower than another: it is not timed again."""
    mine, others = best[name].get(rows), [of[rows] for of in best.values() if rows in of]
    return mine is not None and mine > 5 * min(others)


def _candidates(shape: Shape, processor: Processor) -> dict[str, Way]:
    ways = list_ways(shape.precision)
    return {way.name: way for way in ways if refuse(way, (shape.n, shape.k), shape.dtype, 1, processor) is None}


class _Lap:
    """Products of one shape by one way, over as many weights as its span holds. Numbers do not matter: all are one
    random weight's, copied."""

    def __init__(self, way: Way, shape: Shape) -> None:
        self.way, self.shape = way, shape
        self.dtype = getattr(torch, shape.dtype)
        n = max(16, min(shape.n, int(SPAN / 4 / shape.k)) // 16 * 16)  # a vocabulary's product is its first rows'
        copies = max(1, round(SPAN / (4 * n * shape.k)))
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(n, shape.k, generator=draw).to(self.dtype)
        with torch.inference_mode():
            self.packed = {0: [way.prepare(weight.clone(), None, 1) for _ in range(copies)]}
        self.weight = weight if way.one_size else None
        self.x = {rows: torch.randn(rows, shape.k, generator=draw).to(self.dtype) for rows in BUCKETS}

    def run(self, rows: int) -> float:
        """Multiply, and give the seconds for each weight."""
        packed = self._pack_for(rows)
        if rows > FEW:
            packed = packed[:1]
        x, multiply = self.x[rows], self.way.run
        with torch.inference_mode():
            multiply(x, packed[-1])  # the first product of a size makes oneDNN's primitive
            start = time.perf_counter()
            for each in packed:
                multiply(x, each)
            return (time.perf_counter() - start) / len(packed)

    def _pack_for(self, rows: int) -> list[Any]:
        if self.weight is None:
            return self.packed[0]
        if rows not in self.packed:
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
