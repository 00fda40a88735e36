"""Compile a run's layers: where the config says so, or, with `compile=auto`, where a trial shows that it pays.

Compiling takes seconds for each kind of layer, and what it gains depends on the processor, the width and the precision:
small models gain most, as more of their time goes to elementwise operations, which Inductor joins. So a run that would
take minutes measures it, once, after its first steps.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from zoo.errors import short
from zoo.kernels.found import machine_of
from zoo.lazy import torch
from zoo.training.callbacks import is_hosted
from zoo.training.gradient import WholeModel
from zoo.training.run import Run

AFTER = 3  # steps: what the first calls alone cost is over
LEAST = 300.0  # seconds that the steps left would take: compiling and the trial take about 15, and gain 5 to 25 %
GAIN = 1.05  # times as fast as without: a trial is this inexact
FEWEST = 50  # microbatches left, below which none is timed
LAPS = 5  # microbatches timed each way


def compile_if_stated(run: Run) -> None:
    """Compile the layers of a run whose config says so, or whose checkpoint found that it pays."""
    if run.settings.compile is not True and not run.compiled:
        return
    run.compiled = True
    compile_model(run.computing.model)


def compile_if_it_pays(run: Run) -> None:
    """Try compiled layers once, after the first steps of a run with `compile=auto`; keep them where they are faster.

    The choice is kept in checkpoints: compiled layers round otherwise, and a run that resumes has the same bits. Draws
    no random numbers, and leaves no gradients.
    """
    if run.compiled is not None or run.step < AFTER:
        return
    run.compiled = False
    if run.settings.compile == "auto" and may_pay(run):
        run.compiled = try_compiled(run)


def may_pay(run: Run) -> bool:
    """Whether a trial is worth its time: on a CPU, for steps of one shape, where those left would take minutes."""
    settings = run.settings
    fits = settings.objective.every_token and not run.batches.documents and settings.recompute != "selective"
    fits = fits and settings.recipe is None and not is_hosted() and run.world.size == 1
    if run.device.type != "cpu" or not fits or "compiler" not in machine_of(run.device).packages:
        return False
    held = run.held_out[0].batches
    if not held or len(held[0].input_ids) != settings.batch_size // settings.accumulate:
        return False  # another shape than training's: it would be compiled for the trial alone
    microbatches = (settings.steps - run.step) * settings.accumulate
    return microbatches >= FEWEST and microbatches * Trial(run).lap() > LEAST


def try_compiled(run: Run) -> bool:
    """Compile the layers and time them beside those that are not. Undoes it where they are not faster."""
    began, trial, model = time.perf_counter(), Trial(run), run.computing.model
    compile_model(model)
    try:
        trial.lap()
    except RuntimeError as error:  # what Dynamo and Inductor raise
        undo_compilation(model)
        run.show.say(f"compile: the layers cannot be compiled here, found {short(error)} (compile=false)")
        return False
    took = time.perf_counter() - began
    gain = trial.compare()
    if gain < GAIN:
        undo_compilation(model)
        run.show.say(f"compile: not, as compiled layers are {gain:.2f} times as fast here (compile=true does)")
        return False
    found = f"{gain:.2f} times as fast, compiled in {took:.0f} s"
    run.show.say(f"compile: layers are compiled from step {run.step + 1} on, {found} (compile=false: never)")
    return True


class Trial:
    """Times one microbatch of held-out text, forward and backward, as a run computes it."""

    def __init__(self, run: Run) -> None:
        assert isinstance(run.computing, WholeModel)  # one process, as `may_pay` has it
        self.run, self.computing, self.batch = run, run.computing, run.held_out[0].batches[0]

    def lap(self) -> float:
        """Compute a gradient, and drop it. Returns its seconds."""
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            self.computing.accumulate(self.batch, parts=1)
        seconds = time.perf_counter() - start
        self.computing.model.zero_grad(set_to_none=True)
        self.run.optimizer.zero_grad(set_to_none=True)
        return seconds

    def compare(self) -> float:
        """Time laps with compiled layers and without, in turn. Returns how many times as fast the compiled ones are."""
        ratios = []
        for _ in range(LAPS):
            with run_eagerly(True):
                plain = self.lap()
            ratios.append(plain / self.lap())
        return statistics.median(ratios)


def run_eagerly(compiled: bool) -> AbstractContextManager[Any]:
    """Leave what is compiled aside inside the block."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def compile_model(model: Any) -> None:
    """Compile each layer by itself, as equal layers share one compilation and its time does not grow with depth; and
    the loss behind each head."""
    for path, _ in model.towers():
        tower = model.get_submodule(path)
        if hasattr(tower, "head"):  # of a pipeline's stages, the last has one
            tower.head.compiles_loss = True
        for block in tower.blocks:
            block.compile(dynamic=False)


def undo_compilation(model: Any) -> None:
    """Let a model's layers run as they are again."""
    for path, _ in model.towers():
        tower = model.get_submodule(path)
        if hasattr(tower, "head"):
            tower.head.compiles_loss = False
        for block in tower.blocks:
            block._compiled_call_impl = None  # torch has no public way back
