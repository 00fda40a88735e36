"""Show a run's progress: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY = 10.0  # seconds between plain lines
EXCERPT = 160  # characters of a sample that are shown


def format_duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Show:
    """Prints progress to standard error, which leaves standard output to results."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.steps = steps
        self._shown = 0.0
        self._preparing = ""
        self._bar: Progress | None = None

    def __enter__(self) -> Show:
        if self.console.is_terminal:
            columns = [TextColumn("step"), MofNCompleteColumn(), BarColumn(None)]
            columns += [TextColumn(f"{{task.fields[{name}]}}") for name in ("training", "validation", "speed")]
            self._bar = Progress(*columns, console=self.console, expand=True)
            self._bar.add_task("", total=self.steps, training="", validation="", speed="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str, **style: Any) -> None:
        self.console.print(text, markup=False, **style)

    def step(self, step: int, loss: float, tokens_per_second: float, mfu: float | None, seconds_left: float) -> None:
        """Show a training step: its loss, the speed and the time left. MFU is left out where it has no yardstick."""
        training = f"loss {loss:.3f}"
        share = "" if mfu is None else f"  MFU {mfu:.1%}"
        speed = f"{tokens_per_second:,.0f} tok/s{share}  ETA {format_duration(seconds_left)}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, training=training, speed=speed)
        elif step in (1, self.steps) or time.monotonic() - self._shown >= LINE_EVERY:
            self._shown = time.monotonic()
            self.say(f"step {step}/{self.steps}  {training}  {speed}")

    def evaluation(self, step: int, val_loss: float, bits_per_byte: float | None) -> None:
        """Show the result of an evaluation."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], validation=f"val {val_loss:.3f}")
        bits = "" if bits_per_byte is None else f", {bits_per_byte:.4f} bits per byte"
        self.say(f"step {step}/{self.steps}  validation loss {val_loss:.4f}{bits}", style="bold")

    def sample(self, text: str) -> None:
        """Show the beginning of a sample."""
        flat = " ".join(text.split())
        self.say(f"  {flat[:EXCERPT]}{'…' if len(flat) > EXCERPT else ''}", style="dim")

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show how far the preparation of the data is (see `zoo.data.prepare`)."""
        if self.console.is_terminal:
            share = f" {done / total:.0%}" if total else ""
            self.say(f"data: {what}{share}".ljust(40), style="dim", end="\r")
        elif what != self._preparing:
            self.say(f"data: {what}")
        self._preparing = what
