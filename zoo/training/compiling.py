"""Compile a run's layers with `compile=true`, or with `compile=auto` if a trial shows that compiled layers are faster.

Compiling takes seconds for each kind of layer, and its gain depends on the processor, the width and the precision.
Small models gain most, because elementwise operations, which Inductor fuses, take more of their time. So a run of one
CPU process with rows of one shape and minutes left measures the gain once, after its first steps. On CUDA `auto` is
decided before the first step (`zoo.training.device_defaults`). Other runs are not compiled.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from zoo.errors import short
from zoo.kernels.found import machine_of
from zoo.lazy import torch
from zoo.training.callbacks import is_hosted
from zoo.training.gradient import WholeModel
from zoo.training.run import Run

if TYPE_CHECKING:
    from zoo.training.settings import Training

AFTER = 3  # steps: the one-off costs of first calls are over
LEAST = 300.0  # seconds that the steps left must take: compiling and the trial take about 15 and gain 5 to 25 %
GAIN = 1.05  # least speed-up: a trial is this inexact
FEWEST = 50  # microbatches that must be left for a trial
LAPS = 5  # microbatches timed each way


def compile_if_stated(run: Run) -> None:
    """Compile the layers of a run with `compile=true`, or if its checkpoint records that compiled layers were
    faster."""
    if run.settings.compile is not True and not run.compiled:
        return
    run.compiled = True
    compile_model(run.computing.model)


def compile_if_it_pays(run: Run) -> None:
    """Try compiled layers once, after the first steps of a run with `compile=auto`; keep them if they are faster.

    The choice is saved in checkpoints: compiled layers round differently, and a resumed run must give the same bits.
    Draws no random numbers, and leaves no gradients.
    """
    if run.compiled is not None or run.step < AFTER:
        return
    run.compiled = False
    if run.settings.compile == "auto" and may_pay(run):
        run.compiled = try_compiled(run)


def may_pay(run: Run) -> bool:
    """Whether a trial is worth its time: one CPU process, steps of one shape, and minutes of training left."""
    settings = run.settings
    fits = has_one_shape(settings, run.batches.documents) and settings.recipe is None
    fits = fits and not is_hosted() and run.world.size == 1
    if run.device.type != "cpu" or not fits or "compiler" not in machine_of(run.device).packages:
        return False
    held = run.held_out[0].batches
    if not held or len(held[0].input_ids) != settings.batch_size // settings.accumulate:
        return False  # held-out rows of another shape would be compiled for the trial alone
    microbatches = (settings.steps - run.step) * settings.accumulate
    return microbatches >= FEWEST and microbatches * time_lap(run) > LEAST


def has_one_shape(settings: Training, documents: bool) -> bool:
    """Whether a run's layers get inputs of one shape, and are not split by `recompute=selective`. Layers are compiled
    again for each other shape."""
    return settings.objective.every_token and not documents and settings.recompute != "selective"


def try_compiled(run: Run) -> bool:
    """Compile the layers and time them against plain ones. Returns whether compiled layers are faster; if they are not,
    layers run uncompiled again."""
    began, model = time.perf_counter(), run.computing.model
    compile_model(model)
    try:
        time_lap(run)
    except RuntimeError as error:  # raised by Dynamo and Inductor
        undo_compilation(model)
        run.show.say(f"compile: the layers cannot be compiled here, found {short(error)} (compile=false)")
        return False
    took = time.perf_counter() - began
    gain = compare_laps(run)
    if gain < GAIN:
        undo_compilation(model)
        run.show.say(f"compile: not, as compiled layers are {gain:.2f} times as fast here (compile=true does)")
        return False
    found = f"{gain:.2f} times as fast, compiled in {took:.0f} s"
    run.show.say(f"compile: layers are compiled from step {run.step + 1} on, {found} (compile=false: never)")
    return True


def time_lap(run: Run) -> float:
    """Compute the gradient of one microbatch of held-out text and discard it. Returns the seconds it took."""
    assert isinstance(run.computing, WholeModel)  # one process: `may_pay` has checked it
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        run.computing.accumulate(run.held_out[0].batches[0], parts=1)
    seconds = time.perf_counter() - start
    run.computing.model.zero_grad(set_to_none=True)
    run.optimizer.zero_grad(set_to_none=True)
    return seconds


def compare_laps(run: Run) -> float:
    """Time laps with and without compiled layers, alternating. Returns the speed-up of compiled layers."""
    ratios = []
    for _ in range(LAPS):
        with run_eagerly(True):
            plain = time_lap(run)
        ratios.append(plain / time_lap(run))
    return statistics.median(ratios)


def run_eagerly(compiled: bool) -> AbstractContextManager[Any]:
    """If `compiled`, run layers uncompiled within the block."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def compile_model(model: Any) -> None:
    """Compile each layer separately, and the loss of each head. Equal layers share one compilation, so compile time
    does not grow with depth."""
    for path, _ in model.towers():
        tower = model.get_submodule(path)
        if hasattr(tower, "head"):  # of a pipeline's stages, only the last has a head
            tower.head.compiles_loss = True
        for block in tower.blocks:
            block.compile(dynamic=False)


def undo_compilation(model: Any) -> None:
    """Make a model's layers run uncompiled again."""
    for path, _ in model.towers():
        tower = model.get_submodule(path)
        if hasattr(tower, "head"):
            tower.head.compiles_loss = False
        for block in tower.blocks:
            block._compiled_call_impl = None  # torch has no public way back
