"""Choose the ways of one shape from their timings: one packing at most, and a way for each bucket of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from zoo.run.linear.base import EXACT
from zoo.run.linear.probe import BUCKETS, RESTORED, Times, takes
from zoo.run.linear.ways import WAYS

GAIN = 1.08  # how many times faster than the plain weight a packed copy must be to be made
ALIKE = 1.05  # how many times slower a way may be to count as fast as the fastest: a timing is this inexact
PROMPT = 0.25  # the weight of a prompt's rows beside that of a decoding step's
UNKNOWN = 1e3  # seconds of a way that was not timed


@dataclass(frozen=True)
class WayPlan:
    """The ways of one product: the one that packs the weight, or None, and the way of each bucket of rows."""

    packing: str | None
    ways: tuple[str, ...]

    def __str__(self) -> str:
        """For example "onednn to 32 rows, plain beyond"."""
        runs: list[tuple[str, int]] = []
        for way, rows in zip(self.ways, BUCKETS, strict=True):
            if runs and runs[-1][0] == way:
                runs[-1] = (way, rows)
            else:
                runs.append((way, rows))
        if len(runs) == 1:
            return runs[0][0]
        return ", ".join([*(f"{way} to {rows} rows" for way, rows in runs[:-1]), f"{runs[-1][0]} beyond"])

    def uniform(self, rows: int) -> WayPlan:
        """The plan by which a product of any number of rows goes the way of one of `rows`, as long as no way of this
        plan is bound to some number of rows."""
        way = self.ways[find_bucket(rows)]
        bound = way == RESTORED or WAYS[way].most_rows is not None or WAYS[way].one_size
        return self if bound else WayPlan(self.packing, (way,) * len(BUCKETS))

    @property
    def reads_plain(self) -> bool:
        """Whether some bucket reads the weight as it was."""
        return any(way != RESTORED and not WAYS[way].packs for way in self.ways)


def plan_without_timing(able: Sequence[str]) -> WayPlan:
    """Plan for a shape that is too small to be worth timing: the first way that can, for all rows."""
    return WayPlan(able[0] if WAYS[able[0]].packs else None, (able[0],) * len(BUCKETS))


def plan_named(name: str, rows: int) -> WayPlan:
    """Plan for a way that was named: it takes every bucket that it can, the plain weight the others."""
    way, only = WAYS[name], find_bucket(rows)
    able = [takes(name, bucket) and (not way.one_size or number == only) for number, bucket in enumerate(BUCKETS)]
    return WayPlan(name if way.packs else None, tuple(name if each else "plain" for each in able))


def choose_plan(
    times: Times,
    precision: str = EXACT,
    rows: Iterable[int] = BUCKETS[:-1],
    *,
    keep: bool = True,
    allows: Callable[[str, int], bool] = lambda way, rows: True,
) -> WayPlan | None:
    """Choose the packing, and each bucket's way, that take the least time for `rows`, the numbers of rows expected.

    With `keep` the plain weight stays beside the packed one, and any bucket may read it; without it a packing must
    serve all buckets. `allows` says whether a way may be used for a bucket. None where no way serves all.
    """
    times, expected = _fill(times), {find_bucket(each) for each in rows}
    free = [way for way in times if way in WAYS and not WAYS[way].packs]
    packings = [way for way in times if way in WAYS and WAYS[way].packs]
    best: tuple[float, WayPlan] | None = None
    for packing in [None, *packings] if free else packings:
        one_size = packing is not None and WAYS[packing].one_size
        if one_size and (len(expected) > 1 or not keep):
            continue
        beside = free if packing is None or keep else []
        ways = []
        for number, bucket in enumerate(BUCKETS):
            able = [*beside]
            if packing is not None and (not one_size or number in expected):
                able += [packing, *([RESTORED] if WAYS[packing].restores and RESTORED in times and not beside else [])]
            able = [way for way in able if bucket in times.get(way, {}) and allows(way, bucket)]
            ways.append(_pick(able, times, bucket, packing))
        if None in ways:
            continue
        cost = _score(times, ways, expected) + (math.log(GAIN) if packing is not None and precision == EXACT else 0.0)
        plan = WayPlan(packing if packing in ways or RESTORED in ways else None, tuple(map(str, ways)))
        if best is None or cost < best[0]:
            best = cost, plan
    return None if best is None else best[1]


def _pick(able: Sequence[str], times: Times, bucket: int, packing: str | None) -> str | None:
    """The fastest way of a bucket; among those that timing cannot tell apart the packed one, then the first."""
    if not able:
        return None
    least = min(times[way][bucket] for way in able)
    alike = [way for way in able if times[way][bucket] <= least * ALIKE]
    return packing if packing in alike else alike[0]


def find_bucket(rows: int) -> int:
    """Find the number of the bucket of a product of so many rows."""
    return next((number for number, most in enumerate(BUCKETS[:-1]) if rows <= most), len(BUCKETS) - 1)


def _fill(times: Times) -> Times:
    """Give each way the seconds of the nearest bucket where its own was not timed."""
    return {
        way: {rows: of[min(of, key=lambda each: abs(math.log(each / rows)))] for rows in BUCKETS if takes(way, rows)}
        for way, of in times.items()
        if of
    }


def _score(times: Times, ways: Sequence[str | None], expected: set[int]) -> float:
    """The mean logarithm of the seconds of the rows expected, and a part of a prompt's."""
    logs = [math.log(times[str(way)].get(rows, UNKNOWN)) for way, rows in zip(ways, BUCKETS, strict=True)]
    return sum(logs[number] for number in expected) / len(expected) + PROMPT * logs[-1]
