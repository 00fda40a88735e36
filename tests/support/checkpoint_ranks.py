"""Ranks that save checkpoints and wait for each other, as forked_processes.py starts them. Each writes what it measured
to OUT/RANK.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

import zoo
from support.memory_tracker import StorageTracker
from zoo.checkpoint import store
from zoo.distributed import meeting
from zoo.distributed.sharded_tensors import own_part
from zoo.distributed.world import read_world


class HeldBytes(StorageTracker):
    """Counts tensors of floats that have data: no forms on the meta device, and no pickled names and places."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [each for each in pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]
        for each in made:
            if (
                each.is_floating_point() and not each.is_meta and not isinstance(each, DTensor)
            ):  # of which a part is here
                self._count(each.untyped_storage())
        self.most = max(self.most, self.live)
        return result


@contextmanager
def measuring_saves(found: dict[str, int]) -> Iterator[None]:
    """Note the most bytes that tensors take at once while a run's checkpoint is saved, beside those that the process
    held before. Fails where a tensor is gathered on its device."""
    save = store.save_run

    def measure(run: Path, step: int, state: store.Resumable, *others: Any) -> Path:
        states = [each for of in state.optimizer.state.values() for each in of.values() if torch.is_tensor(each)]
        tracker = HeldBytes()
        held = [state.model.state_dict(), state.evaluated, *state.averages.values()]
        tracker.know(own_part(each) for each in (*states, *(each for of in held for each in of.values())))
        with tracker, mock.patch.object(DTensor, "full_tensor", side_effect=AssertionError("gathered")):
            folder = save(run, step, state, *others)
        found["most"] = tracker.most
        return folder

    with mock.patch.object(store, "save_run", measure):
        yield


def save(jobs: str, out: str) -> None:
    """Train the jobs of a JSON file, each a model and overrides."""
    told = []
    for model, overrides in json.loads(Path(jobs).read_text()):
        found: dict[str, int] = {}
        with measuring_saves(found):
            zoo.train(model, overrides)
        told.append(found)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(told))


def wait(out: str) -> None:
    """Let rank 0 work for longer than the timeout of the device's collectives, alone; then let it be late for one."""
    with mock.patch.object(meeting, "TIMEOUT", timedelta(seconds=1)):
        world = read_world()
        meeting.join_processes(world, "cpu")
        world.barrier()
        begin = time.monotonic()
        with world.main_first():
            time.sleep(2 if world.main else 0)
        told: dict[str, Any] = {"waited": time.monotonic() - begin, "said": world.broadcast("written")}
        try:
            time.sleep(2 if world.main else 0)
            torch.distributed.all_reduce(torch.ones(1))
        except RuntimeError as error:
            told["failed"] = str(error)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(told))


def main(verb: str, *args: str) -> None:
    {"save": save, "wait": wait}[verb](*args)
