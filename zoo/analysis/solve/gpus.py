"""Find how many GPUs of each type a model needs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from zoo.analysis.solve.largest_fit import Room, find_largest_batch, price_memory
from zoo.costs.hardware import Hardware, hardware
from zoo.costs.rows import Priced
from zoo.costs.setup import ZERO, Setup
from zoo.errors import ConfigError

Layout = tuple[tuple[str, int], ...]
"""Fields of a Setup with their values."""

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Degrees of tensor parallelism: up to one machine, because between machines an all-reduce per layer is too slow."""

DATA_PARALLEL = tuple(2**power for power in range(11))
"""Degrees of data parallelism, over which ZeRO shards the training states."""


def find_fewest_gpus(
    spec: Priced, setup: Setup, rooms: Iterable[Room], *, train: bool = False, prefill: bool = True
) -> list[dict[str, Any]]:
    """Find the fewest GPUs of each type (`rooms`) that hold a model. The type with the least total memory comes first;
    types that cannot hold the model come last.

    Generation is divided by tensor parallelism. Training uses the lowest ZeRO stage that fits, with the set-up's batch
    on each GPU. A layout that the model refuses is skipped; `refused` has the reason. Raises ConfigError as
    `price_memory` does if the model refuses one GPU.
    """
    first = next(_layouts(setup, train))
    price_memory(
        spec, dataclasses.replace(setup, **first), train=train, prefill=prefill
    )  # an error here concerns every layout, so it is raised

    @functools.cache  # all GPU types try the same layouts
    def need(layout: Layout) -> dict[str, int] | str:
        try:
            return price_memory(spec, dataclasses.replace(setup, **dict(layout)), train=train, prefill=prefill)
        except ConfigError as error:
            return error.faults[0]

    layouts = [tuple(layout.items()) for layout in _layouts(setup, train)]
    rows = [_smallest(setup, room, layouts, need) for room in rooms]
    return sorted(rows, key=lambda row: (not row["fits"], row["memory_total"], row["gpus"], row["room"]["gpu"]))


def count_sequences(
    spec: Priced, setup: Setup, gpus: Iterable[str], contexts: Iterable[int | None]
) -> Iterator[tuple[Hardware, int, list[int]]]:
    """Yield for each type of GPU, the smallest memory first, the fewest GPUs that hold the weights and one sequence of
    the set-up's context (0 if no machine of that type does), and how many sequences of each of `contexts` they hold.
    Prompts are read in small chunks."""
    rooms = {name: Room(memory=hardware(name).memory, gpu=name) for name in gpus}
    rows = find_fewest_gpus(spec, setup, rooms.values(), prefill=False)
    for row in sorted(rows, key=lambda row: row["room"]["memory"]):
        name, count = row["room"]["gpu"], row["gpus"] if row["fits"] else 0
        setups = [dataclasses.replace(setup, context=each, tp=count) for each in contexts if count]
        batches = [find_largest_batch(spec, each, rooms[name], prefill=False)["batch"] for each in setups]
        yield hardware(name), count, batches


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
    """List the layouts to try, the fewest GPUs first. ZeRO stage 0 is for one GPU, the higher stages for several."""
    if not train:
        yield from ({"tp": ranks} for ranks in TENSOR_PARALLEL)
        return
    for ranks in DATA_PARALLEL:
        for stage in ZERO[1:] if ranks > 1 else ZERO[:1]:
            if ranks * setup.cp % setup.ep == 0:
                yield {"dp": ranks, "zero": stage}
