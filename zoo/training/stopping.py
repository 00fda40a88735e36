"""Stop a run when it is asked to: Ctrl-C, or a scheduler's SIGTERM, sent to any of its processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zoo.errors import Terminated
from zoo.training.run import Run
from zoo.training.saving import finish_saving, save_checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(run: Run) -> Iterator[None]:
    """Stop the run after the present step, or the present batch of an evaluation, at Ctrl-C or a scheduler's SIGTERM;
    at once at the second."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if run.asked:
            raise KeyboardInterrupt
        run.asked = signal.Signals(number)
        with suppress(RuntimeError):  # where the signal came while a line was printed
            run.show.say("stopping after this step (once more: at once, without a checkpoint)")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked(run: Run, terms: dict[str, Any]) -> None:
    """Save and raise KeyboardInterrupt or Terminated when any process of the run was asked to stop, and the run is not
    at its end."""
    counts = run.world.sum(*(int(run.asked is each) for each in SIGNALS))
    asked = next((each for each, count in zip(SIGNALS, counts, strict=True) if count), None)
    if asked and (run.step < run.settings.steps or run.evaluation_due):
        save_checkpoint(run, terms)
        finish_saving(run)
        run.show.say(f"stopped after step {run.step}; `zoo train --resume {run.folder}` goes on from there")
        raise Terminated if asked is signal.SIGTERM else KeyboardInterrupt
