"""Call the user's callbacks while a run trains, and record whether the run is inside another program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError, refuse, short
from zoo.training.metric_lines import settle_line

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.run.layer import Model
    from zoo.training.run import Run

MOMENTS = ("after_update", "after_eval", "on_save")


@dataclass(frozen=True)
class TrainingState:
    """The state of a run that callbacks get. The model and the optimizer are the run's own, not copies."""

    step: int
    """Updates taken so far."""
    tokens: int
    """Tokens seen so far."""
    metrics: Mapping[str, float]
    """The newest value of each metric: training metrics as of the last line (`log_every`), `val_loss` and others of
    evaluation as of the last evaluation."""
    model: Model
    optimizer: Optimizer
    folder: Path
    """The run's folder."""


class Callback:
    """Methods that a run calls. Any object with one of them is a callback; subclasses of this class inherit empty
    methods.

    The methods are called between steps, while the clock of `tokens_per_second` is stopped. They may change the
    weights, and draw from training's random generators. Afterwards the model is put back into training mode. An
    exception ends the run as failed, with a ZooError that names the callback, the method and the step.
    """

    def after_update(self, state: TrainingState) -> None:
        """Called after each optimizer step, and after its line of metrics if there is one. On a GPU this waits for the
        line's values, which otherwise come a step late."""

    def after_eval(self, state: TrainingState) -> None:
        """Called after each evaluation that did not fail, and after its sample and pictures."""

    def on_save(self, state: TrainingState, checkpoint: Path) -> None:
        """Called after a checkpoint was written whole, with its folder."""


@dataclass
class Host:
    """The program in which a run trains: the callbacks that the program gave, and the run once it has begun."""

    callbacks: tuple[Any, ...] = ()
    runs: list[Run] = field(default_factory=list)
    foreign: bool = True
    """Whether the process belongs to another program: then settings of the process, such as malloc's, are left
    alone."""


_host: ContextVar[Host | None] = ContextVar("host", default=None)


@contextmanager
def hosted(callbacks: Sequence[Any] = ()) -> Iterator[Host]:
    """Train inside another program, with these callbacks. Raises ConfigError for an object without any method of a
    callback."""
    faults = [
        f"callbacks[{number}]: {type(each).__name__} has none of the methods of a callback ({', '.join(MOMENTS)})"
        for number, each in enumerate(callbacks)
        if isinstance(each, type) or not any(callable(getattr(each, name, None)) for name in MOMENTS)
    ]
    refuse(faults)
    with followed(callbacks, foreign=True) as host:
        yield host


@contextmanager
def followed(callbacks: Sequence[Any], foreign: bool = False) -> Iterator[Host]:
    """Train with these callbacks, in Zoo's own process or inside a `foreign` program."""
    host = Host(tuple(callbacks), foreign=foreign)
    token = _host.set(host)
    try:
        yield host
    finally:
        _host.reset(token)


def is_hosted() -> bool:
    """Whether the run trains inside another program (`Host.foreign`)."""
    return (host := _host.get()) is not None and host.foreign


def introduce(run: Run) -> None:
    """Add a run that is training to the host's `runs`."""
    if (host := _host.get()) is not None:
        host.runs.append(run)


def tell(run: Run, moment: str, *more: Any) -> None:
    """Call the method `moment` of all callbacks that have it. Raises ZooError with the name of a callback that
    fails."""
    host = _host.get()
    if host is None or not host.callbacks:
        return
    settle_line(run)
    state = TrainingState(run.step, run.tokens, dict(run.last), run.model, run.optimizer, run.folder)
    for each in host.callbacks:
        call: Callable[..., object] | None = getattr(each, moment, None)
        if call is None:
            continue
        try:
            call(state, *more)
        except Exception as error:  # the user's code may raise anything
            what = f"{type(each).__name__}.{moment}"
            raise ZooError(f"callback {what}, after step {run.step}: {type(error).__name__} {short(error)}") from error
    run.model.train()
