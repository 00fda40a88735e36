"""Run the only training loop. Each step updates the weights and, when due, writes metrics, saves and evaluates."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from zoo.errors import Terminated
from zoo.training.building import build_start
from zoo.training.callbacks import introduce, tell
from zoo.training.compiling import compile_if_it_pays, compile_if_stated
from zoo.training.metric_lines import record, settle_line
from zoo.training.restarts import is_launched
from zoo.training.run import Run
from zoo.training.run_flops import count_parameters_of
from zoo.training.saving import find_checkpoint, finish_saving, go_back_if_due, save_checkpoint, save_if_due
from zoo.training.update import update
from zoo.training.validation import measure

SIGNALS = (signal.SIGINT, signal.SIGTERM)

HEARD_EVERY = 8
"""Number of steps between two exchanges of received signals among the processes of a run."""

SETTLED = 3
"""Number of steps after which memory has reached training's peak, before evaluations, samples and pictures take
more."""


def fit(run: Run) -> dict[str, Any]:
    """Train to the last step and return the outcome.

    Raises ZooError if a weight to be saved is not finite, and after `skip_nonfinite` steps in a row whose loss or
    gradient is not finite (0: after the first). After a signal it saves, and raises KeyboardInterrupt (Ctrl-C) or
    Terminated (SIGTERM).
    """
    introduce(run)
    run.settings.objective.prepare_run(run, partial(build_start, run), run.settings.steps)
    run.model.train()
    compile_if_stated(run)
    with run.show, stop_on_signals(run):
        if run.evaluation_due:  # after the step that the run resumes from
            measure(run)
        run.gauges.clock.start(run.tokens)
        settled = min(run.step + SETTLED, run.settings.steps)
        while run.step < run.settings.steps:
            go_back_if_due(run)
            terms = update(run)
            settle_line(run)  # of the step before: the device computes this one meanwhile
            run.means.add(terms)
            if run.step == settled:
                run.gauges.note_memory()
            run.evaluation_due = run.due(run.settings.eval_every) or run.at_point
            if run.step == 1 or run.due(run.settings.log_every) or run.evaluation_due:
                record(run, terms)
            with run.gauges.clock.pause():
                tell(run, "after_update")
                compile_if_it_pays(run)
                save_if_due(run, terms)
                stop_if_asked(run, terms)
                if run.evaluation_due:
                    measure(run)
                    stop_if_asked(run, terms)  # a signal may have come meanwhile
        finish_saving(run)
    return describe_outcome(run)


@contextmanager
def stop_on_signals(run: Run) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, stop after the present step or evaluation batch.

    A second signal stops the run at once, except a SIGTERM to a process started by torchrun. Such a process gets two:
    SLURM sends SIGTERM to every process of a job, and torchrun passes its own on.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return

    launched = is_launched()

    def ask(number: int, frame: object) -> None:
        if run.asked and launched and number == signal.SIGTERM:
            return
        if run.asked:
            raise KeyboardInterrupt
        run.asked = signal.Signals(number)
        with suppress(RuntimeError):  # if the signal came while a line was printed
            second = "Ctrl-C" if launched else "Ctrl-C or SIGTERM"
            run.show.say(f"stopping after this step (a second {second} stops at once, without a checkpoint)")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_if_asked(run: Run, terms: dict[str, Any]) -> None:
    """Save and raise KeyboardInterrupt or Terminated if any process of the run got a signal, unless the run is at its
    end. All processes stop after the same step. Several processes exchange signals only every HEARD_EVERY steps,
    because this waits for the slowest."""
    if run.world.size > 1 and run.step % HEARD_EVERY:
        return
    counts = run.world.sum(*(int(run.asked is each) for each in SIGNALS))
    asked = next((each for each, count in zip(SIGNALS, counts, strict=True) if count), None)
    if asked and (run.step < run.settings.steps or run.evaluation_due):
        save_checkpoint(run, terms)
        finish_saving(run)
        run.show.say(f"stopped after step {run.step}; `zoo train --resume {run.folder}` goes on from there")
        raise Terminated if asked is signal.SIGTERM else KeyboardInterrupt


def describe_outcome(run: Run) -> dict[str, Any]:
    """Describe a finished run as plain data. Figures of a failed evaluation are None."""
    params, trained = count_parameters_of(run.model, run.settings)
    gauges, speed = run.gauges, run.tokens / run.gauges.clock.seconds
    return {
        "status": "done",
        "model": run.name,
        "run": str(run.folder),
        "checkpoint": str(find_checkpoint(run, run.step)),
        "params": params,
        "trained": trained,
        "steps": run.step,
        "tokens": run.tokens,
        "flops": run.flops,
        **({"skipped": run.skipped} if run.skipped else {}),
        "train_loss": run.last.get("loss"),
        **{name: run.last.get(name) for name in ("val_loss", "bits_per_byte", *run.settings.objective.measures)},
        "seconds": round(gauges.clock.seconds, 3),
        "tokens_per_second": round(speed, 1),
        "mfu": run.find_mfu(speed),
        "peak": str(gauges.peak),
        **({} if gauges.peak_memory is None else {"peak_memory": gauges.peak_memory}),
        **run.details,
    }
