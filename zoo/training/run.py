"""The state of a run: its model and data, its progress, and the objects that compute, write and measure for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from zoo.data import Batches, PreparedData, hold_out
from zoo.data.held_out_rows import Held
from zoo.distributed.world import ALONE, World
from zoo.lazy import Tensor, torch
from zoo.training.averages import MovingAverage
from zoo.training.gradient import WholeModel
from zoo.training.layout import ProcessGroups
from zoo.training.log import Means, RunLog
from zoo.training.objective import RecordObjective
from zoo.training.planning import TrainingPlan
from zoo.training.run_flops import TrainingFlops
from zoo.training.settings import Training
from zoo.training.speed import Gauges

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.training.pipeline import Pipeline


class Progress(Protocol):
    """Shows a run's progress to the user (`zoo.report.progress.Show`); a context manager around the loop."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None: ...

    def step(self, step: int, metrics: Mapping[str, Any], seconds_left: float) -> None: ...

    def evaluation(
        self, step: int, val_loss: float, bits_per_byte: float | None, measured: Mapping[str, float]
    ) -> None: ...

    def sample(self, text: str) -> None: ...

    def preparing(self, what: str, done: int, total: int) -> None: ...


@dataclass
class Saves:
    """The checkpoints of a run (`zoo.training.saving`). `world` has all processes, and the process group that saves
    use."""

    world: World = ALONE
    step: int = 0  # step of the newest checkpoint
    writing: Future[Path] | None = None  # an asynchronous save in progress
    due: bool = False  # a save that waits for the next update not skipped
    best: list[tuple[float, int]] = field(default_factory=list)  # (rank, step) of the best evaluations kept


class UncountedStep(NamedTuple):
    """A step that is not yet counted as updated or skipped: its number, the rows consumed by its end, and its loss and
    gradient norm `found` [2] on the device."""

    number: int
    consumed: int
    found: Tensor


class CountedBatch(NamedTuple):
    """A batch that is being counted over all processes: the rows consumed by its end, and the function that waits for
    its targets, FLOPs and tokens."""

    consumed: int
    read: Callable[[], list[int]]


class LateLine(NamedTuple):
    """A line of metrics whose values are being copied to the host: its `place`, the memory used, and two functions that
    wait for the values. `count_skipped` counts the updates skipped by its step, `means` returns the means."""

    place: Mapping[str, int]
    memory: int | None
    count_skipped: Callable[[], None]
    means: Callable[[], dict[str, float]]


@dataclass
class Run:
    """A run: its plan and data, the objects that compute, write and measure for it, and its progress."""

    planned: TrainingPlan
    folder: Path
    data: PreparedData
    batches: Batches
    model: Any
    optimizer: Optimizer
    layout: ProcessGroups  # process groups of the mesh
    computing: WholeModel | Pipeline  # computes the model's gradients and losses
    records: RunLog
    gauges: Gauges
    show: Progress
    saves: Saves
    drawings: Mapping[str, Callable[[Run], object]]  # functions that draw after an evaluation, by name
    counter: TrainingFlops | None
    ema: MovingAverage | None = None
    means: Means = field(default_factory=Means)
    step: int = 0
    tokens: int = 0
    flops: int | None = None  # of training, without evaluations; None if not counted
    last: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    evaluation_due: bool = False  # this step's evaluation is still to come
    skipped: int = 0  # updates skipped, as far as counted: their loss or gradient was not finite
    skipped_in_row: int = 0  # skipped updates since the last one made
    uncounted: list[UncountedStep] = field(default_factory=list)
    counted_ahead: CountedBatch | None = None  # the next batch, counted while the device computes the present one
    late_line: LateLine | None = None
    details: dict[str, Any] = field(default_factory=dict)  # the newest evaluation's metrics by class, losses by piece
    compiled: bool | None = None  # whether layers are compiled; None: undecided
    asked: signal.Signals | None = None  # the signal that asked this process to stop

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def settings(self) -> Training:
        return self.planned.settings

    @property
    def world(self) -> World:
        """All processes of the run."""
        return self.layout.world

    @cached_property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def held_out(self) -> list[Held]:
        settings = self.settings
        parts = 1 if settings.objective.compares_rows else settings.accumulate
        rows = (settings.batch_size // parts, settings.seq_len)
        wanted = None if settings.eval_batches is None else settings.eval_batches * settings.batch_size
        collate = None if settings.objective.every_token else self.batches.collate
        documents = self.batches.documents
        return hold_out(
            self.data.held_out, *rows, wanted=wanted, documents=documents, collate=collate, part=settings.eval_part
        )

    @property
    def place(self) -> dict[str, int]:
        """The step, tokens and, if counted, FLOPs of a line of metrics."""
        return {"step": self.step, "tokens": self.tokens, **({} if self.flops is None else {"flops": self.flops})}

    @property
    def at_point(self) -> bool:
        """Whether one of several decays of a schedule has just ended."""
        return self.step in self.settings.schedule.list_points(self.settings.steps)

    def due(self, every: int | None) -> bool:
        """Whether work that is done every `every` steps (None: never) and after the last step is due after this
        step."""
        return self.step == self.settings.steps or (every is not None and self.step % every == 0)

    def find_mfu(self, speed: float) -> float | None:
        """Compute the MFU at `speed` tokens a second. None if FLOPs are not counted, for labelled rows (their padding
        has FLOPs too), and if it exceeds 1 because the peak was measured too low."""
        if self.flops is None or isinstance(self.settings.objective, RecordObjective):
            return None
        share = self.gauges.peak.share(speed * self.flops / self.tokens / self.world.size)
        return None if share is None else round(share, 4)
