"""Ranks that save checkpoints and wait for each other, as forked_processes.py starts them. Each writes what it measured
to OUT/RANK.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
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
from zoo.checkpoint.parallel_checkpoint import hold_weights
from zoo.checkpoint.sharded import Piece
from zoo.checkpoint.stored import StoredTensors
from zoo.distributed import meeting
from zoo.distributed.sharded_tensors import own_part
from zoo.distributed.world import read_world
from zoo.training import building, layout


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


@contextmanager
def measuring_start(found: dict[str, int]) -> Iterator[None]:
    """Note the most bytes that tensors take at once while a run's model is built and gets its weights, the bytes of the
    weights that the process then holds."""
    build = building.build_model

    def measure(*args: Any, **options: Any) -> Any:
        with HeldBytes() as tracker:
            model = build(*args, **options)
        weights = list(model.state_dict().values())
        found["most"], found["held"] = tracker.most, sum(own_part(each).nbytes for each in weights)
        return model

    with mock.patch.object(building, "build_model", measure):
        yield


@contextmanager
def measuring_resumption(found: dict[str, int]) -> Iterator[None]:
    """Note the most bytes that tensors take at once while a run's checkpoint is read, beside the model, and the bytes
    of the optimizer's states that the process then holds."""
    load = store.load_run

    def measure(folder: Path, model: Any, optimizer: Any, **options: Any) -> dict[str, Any]:
        tracker = HeldBytes()
        tracker.know(own_part(each) for each in model.state_dict().values())
        with tracker, counting_reads() as read:
            counters = load(folder, model, optimizer, **options)
        found["read"] = sum(read)
        states = [each for of in optimizer.state.values() for each in of.values()]
        found["most"], found["held"] = tracker.most, sum(own_part(each).nbytes for each in states)
        return counters

    with mock.patch.object(store, "load_run", measure):
        yield


@contextmanager
def counting_reads() -> Iterator[list[int]]:
    """Note the bytes of each tensor, or part of one, that is read of a checkpoint's optimizer states."""
    found: list[int] = []

    def note(name: str, tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.nbytes if name.startswith("optimizer.") else 0)
        return tensor

    def noting(stored: StoredTensors) -> StoredTensors:
        def read_slices(name: str) -> Any:
            return lambda at: note(name, stored.find_slices(name)(at))

        return StoredTensors(stored.forms, lambda name: note(name, stored[name]), find_slices=read_slices)

    opened = store.open_states
    with mock.patch.object(store, "open_states", lambda folder: noting(opened(folder))):
        yield found


@contextmanager
def measuring_teacher(found: dict[str, int]) -> Iterator[None]:
    """Note the most bytes that tensors take at once while a run's teacher is built, and the bytes that it then has."""
    spread = layout.ProcessGroups.spread_frozen

    def measure(*args: Any) -> Any:
        with HeldBytes() as tracker:
            model = spread(*args)
        found["most"] = tracker.most
        found["held"] = sum(own_part(each).nbytes for each in model.state_dict().values())
        return model

    with mock.patch.object(layout.ProcessGroups, "spread_frozen", measure):
        yield


def save(jobs: str, out: str) -> None:
    """Train the jobs of a JSON file, each a model and overrides, and measure their saves."""
    train(measuring_saves, jobs, out)


def start(jobs: str, out: str) -> None:
    """Train the jobs of a JSON file, each a model and overrides, and measure how they start."""
    train(measuring_start, jobs, out)


def resume(jobs: str, out: str) -> None:
    """Go on with the runs of a JSON file, each `{"resume": folder}` and overrides, and measure how they begin."""
    train(measuring_resumption, jobs, out)


def teach(jobs: str, out: str) -> None:
    """Train the jobs of a JSON file, each a model and overrides, and measure their teachers."""
    train(measuring_teacher, jobs, out)


def train(measuring: Any, jobs: str, out: str) -> None:
    told = []
    for model, overrides in json.loads(Path(jobs).read_text()):
        found: dict[str, int] = {}
        with measuring(found):
            zoo.train(**model, overrides=overrides) if isinstance(model, dict) else zoo.train(model, overrides)
        told.append(found)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(told))


def read(job: str, out: str) -> None:
    """Build the model of a run that starts from weights which `pattern` made, check its values, and end before the
    first step."""
    build = building.build_model

    def measure(*args: Any, **options: Any) -> None:
        before, begin = read_own_memory(), time.monotonic()
        model = build(*args, **options)
        held = hold_weights(model)
        told = {"before": before, "peak": read_own_memory("VmHWM"), "seconds": time.monotonic() - begin}
        told["held"] = sum(each.tensor.nbytes for of in held.values() for each in of.pieces)
        told["wrong"] = [name for name, each in held.items() if not all(map(is_pattern, each.pieces))]
        Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(told))
        torch.distributed.barrier()
        os._exit(0)  # a step's gradients and states would take three times the weights

    with mock.patch.object(building, "build_model", measure):
        model, overrides = json.loads(Path(job).read_text())
        zoo.train(model, overrides)


def pattern(shape: Sequence[int], offset: Sequence[int]) -> torch.Tensor:
    """The values of a part of a made weight: each a function of its place in the whole tensor."""
    found = torch.zeros(())
    for size, at, factor in zip(shape, offset, (7, 13, 29, 31), strict=False):
        found = found[..., None] + torch.arange(at, at + size) * factor
    return found.remainder(1021) / 1021


def is_pattern(piece: Piece) -> bool:
    return torch.equal(piece.tensor, pattern(piece.tensor.shape, piece.offset))


def read_own_memory(name: str = "VmRSS") -> int:
    """Bytes of this process that the system counts: VmRSS now, VmHWM at most."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024


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
        torch.distributed.all_reduce(torch.ones(1))  # connects the processes, which has no timeout of its own
        try:
            time.sleep(2 if world.main else 0)
            torch.distributed.all_reduce(torch.ones(1))
        except RuntimeError as error:
            told["failed"] = str(error)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(told))


def main(verb: str, *args: str) -> None:
    {"save": save, "resume": resume, "teach": teach, "start": start, "read": read, "wait": wait}[verb](*args)
