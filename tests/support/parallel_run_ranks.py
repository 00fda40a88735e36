"""Runs the jobs of a JSON file, one after the other, in the ranks that forked_processes.py starts, with the arguments
JOBS OUT.

Each is a model, overrides and perhaps the folder of a run that goes on. What each process holds in each job, of the
model, of gradients and states, is written to OUT/RANK.json; a job's gradients in the first step, whole, to
FOLDER.gradients beside the folder of its run.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import zoo
from support.gathered_weights import Gathered
from support.memory_tracker import StorageTracker
from support.sent_bytes import Sent
from zoo.checkpoint.parallel_checkpoint import locate, write_whole
from zoo.distributed.sharded_tensors import own_part
from zoo.distributed.world import read_world
from zoo.training import update, validation

warnings.filterwarnings("error", message="FSDP2-wrapped module")  # of what loses a hook, and so gradients


class Watch:
    """Counts the bytes of a process while a run trains: weights, gradients before the first update, weights that FSDP
    gathers, states at the end, what is sent in the second step and in the last sample, and the most that all tensors
    take in the second step."""

    def __init__(self) -> None:
        self.weights = 0  # elements
        self.gradients = 0
        self.gathered = 0
        self.states = 0
        self.peak = 0
        self.sent: dict[str, float] = {}
        self.sampled: dict[str, float] = {}
        self._mode: Sent | None = None
        self._tracker = StorageTracker()

    def note_gradients(self, model: Any) -> None:
        held = [each.grad for each in model.parameters() if each.grad is not None]
        self.gradients = sum(own_part(each).numel() * each.element_size() for each in held)

    def after_update(self, state: Any) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._tracker.__exit__(None, None, None)
            self.sent, self._mode = self._mode.bytes, None
        parameters = [own_part(each) for each in state.model.parameters()]
        self.weights = sum(each.numel() for each in parameters)
        held = [each for of in state.optimizer.state.values() for each in of.values() if torch.is_tensor(each)]
        states = [own_part(each) for each in held if each.ndim]
        self.states = sum(each.nbytes for each in states)
        self.peak = self._tracker.most + self.states + sum(each.nbytes for each in parameters)
        if state.step == 1:
            self._mode = Sent()
            self._tracker.know([*parameters, *(own_part(each) for each in held), *state.model.buffers()])
            self._tracker.__enter__()
            self._mode.__enter__()


@contextmanager
def watching_samples(watch: Watch) -> Iterator[None]:
    """Note what is sent while a sample is generated."""
    write = validation.write_sample

    def watched(run: Any) -> None:
        with Sent() as sent:
            write(run)
        watch.sampled = sent.bytes

    validation.write_sample = watched
    try:
        yield
    finally:
        validation.write_sample = write


@contextmanager
def keeping_gradients(folder: str, watch: Watch | None = None) -> Iterator[None]:
    """Write the gradients of a run's first step, gathered whole, to `FOLDER.gradients`."""
    measure, file, world = update.measure_gradient, Path(f"{folder}.gradients"), read_world()

    def note(model: Any) -> Any:
        if not file.exists():
            if watch is not None:
                watch.note_gradients(model)
            gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
            held = {name: locate(model.shares, name, each) for name, each in gradients.items()}
            write_whole(held, file, world)
            world.barrier()
        return measure(model)

    update.measure_gradient = note
    try:
        yield
    finally:
        update.measure_gradient = measure


def main(jobs: str, out: str) -> None:
    told = []
    for model, overrides, resume in json.loads(Path(jobs).read_text()):
        watch, gathered = Watch(), Gathered()
        if resume:
            zoo.train(resume=resume, overrides=overrides, callbacks=[watch])
        else:
            folder = next(each for each in overrides if each.startswith("hydra.run.dir=")).partition("=")[2]
            with keeping_gradients(folder, watch), watching_samples(watch), gathered:
                zoo.train(model, overrides, callbacks=[watch])
        watch.gathered = gathered.most
        told.append({name: each for name, each in vars(watch).items() if name[0] != "_"})
    (Path(out) / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))
