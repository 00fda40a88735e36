"""Write a run's lines of training metrics. A line is written a step late if the host would otherwise wait for the
device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.run.machine_memory import read_used_memory
from zoo.training.finite import count_skipped, refuse_nonfinite, send_uncounted
from zoo.training.run import LateLine, Run


def record(run: Run, terms: Mapping[str, Any]) -> None:
    """Make a line of metrics: the means over the steps since the last line.

    The line is written at once if the host has waited for this step's update (as on a CPU). Otherwise its values are
    copied to the host, and `settle_line` writes it after the next step is launched, or before anything else that waits.
    """
    refuse_nonfinite(run, terms)
    known = not run.uncounted
    run.late_line = LateLine(run.place, read_used_memory(run.device), send_uncounted(run), run.means.take())
    if known:
        settle_line(run)


def settle_line(run: Run) -> None:
    """Write the line that is being copied to the host, if any. Waits for its step, but not for later ones. Raises
    Diverged (`count_skipped`), so all processes of a run must call this after the same steps."""
    line, run.late_line = run.late_line, None
    if line is None:
        return
    line.count_skipped()
    values, clock = line.means(), run.gauges.clock
    step, tokens = line.place["step"], line.place["tokens"]
    speed = clock.lap(tokens)
    measured = {
        "skipped": run.skipped,
        "tokens_per_second": round(speed, 1),
        "mfu": run.find_mfu(speed),
        "memory": line.memory,
    }
    run.records.write_line(**line.place, **values, **measured)
    run.last |= values
    left = (run.settings.steps - step) * tokens / step
    run.show.step(step, {**values, **measured}, left / clock.pace)
    with clock.pause():
        if choice := run.gauges.follow(speed):
            run.show.say(f"computes from step {run.step + 1} on with {choice}")


def settle_steps(run: Run) -> None:
    """Wait for the device: write the line that is being copied, and count the updates skipped since
    (`count_skipped`)."""
    settle_line(run)
    count_skipped(run)
