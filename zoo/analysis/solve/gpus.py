"""How many of each GPU a model needs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zoo.analysis.solve.fit import Room, price_memory
from zoo.costs.setup import ZERO, Setup
from zoo.errors import ConfigError

Layout = tuple[tuple[str, int], ...]
"""Fields of a set-up, and their values."""

TENSOR_PARALLEL = (1, 2, 4, 8)
"""GPUs that share every matrix product: of one machine, as more are too far apart for an all-reduce a layer."""

DATA_PARALLEL = tuple(2**power for power in range(11))
"""GPUs that share the states of training by ZeRO."""


def find_fewest_gpus(
    spec: Any, setup: Setup, rooms: Iterable[Room], *, train: bool = False, prefill: bool = True
) -> list[dict[str, Any]]:
    """The fewest of each GPU that hold the model, those with the least memory in all first and those that cannot hold
    it last.

    Generating divides it by tensor parallelism, training by the lowest stage of ZeRO that does, each GPU with the
    set-up's batch. A division that the model refuses is passed over; `refused` says why where nothing else fits.
    """
    first = next(_layouts(setup, train))
    price_memory(
        spec, dataclasses.replace(setup, **first), train=train, prefill=prefill
    )  # no layout's fault, if it is one

    @functools.cache  # every GPU is held against the same layouts
    def need(layout: Layout) -> dict[str, int] | str:
        try:
            return price_memory(spec, dataclasses.replace(setup, **dict(layout)), train=train, prefill=prefill)
        except ConfigError as error:
            return error.faults[0]

    layouts = [tuple(layout.items()) for layout in _layouts(setup, train)]
    rows = [_smallest(setup, room, layouts, need) for room in rooms]
    return sorted(rows, key=lambda row: (not row["fits"], row["memory_total"], row["gpus"], row["room"]["gpu"]))


def _smallest(
    setup: Setup, room: Room, layouts: Iterable[Layout], need: Callable[[Layout], dict[str, int] | str]
) -> dict[str, Any]:
    row: dict[str, Any] = {"fits": False, "gpus": 0, "memory_total": room.memory, "room": room.as_dict()}
    for layout in layouts:
        found = need(layout)
        if isinstance(found, str):
            row["refused"] = found
            continue
        ranks = dataclasses.replace(setup, **dict(layout)).ranks
        row |= {"needed": found, "gpus": ranks, "memory_total": ranks * room.memory, **dict(layout)}
        if found["total"] <= room.bytes:
            return {**row, "fits": True}
    return {**row, "short": row["needed"]["total"] - room.bytes}


def _layouts(setup: Setup, train: bool) -> Iterator[dict[str, int]]:
    """What is tried, fewest GPUs first. One has nobody to share with, and stage 0 shares nothing."""
    if not train:
        yield from ({"tp": ranks} for ranks in TENSOR_PARALLEL)
        return
    for ranks in DATA_PARALLEL:
        for stage in ZERO[1:] if ranks > 1 else ZERO[:1]:
            if ranks * setup.cp % setup.ep == 0:
                yield {"dp": ranks, "zero": stage}
