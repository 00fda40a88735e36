"""What a run shows while it is at work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY = 10.0  # seconds between plain lines


def duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Show:
    """Told what happens, it shows it on standard error, which leaves standard output to results."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.steps = steps
        self.val_loss: float | None = None
        self._shown = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> Show:
        if self.console.is_terminal:
            columns = [TextColumn("step"), MofNCompleteColumn(), BarColumn(None), TextColumn("{task.fields[state]}")]
            self._bar = Progress(*columns, console=self.console, expand=True)
            self._bar.add_task("", total=self.steps, state="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str, **style: Any) -> None:
        self.console.print(text, markup=False, **style)

    def step(self, step: int, loss: float, tokens_per_second: float, mfu: float, seconds_left: float) -> None:
        """How a training step went."""
        validation = "" if self.val_loss is None else f"  val {self.val_loss:.3f}"
        speed = f"{tokens_per_second:,.0f} tok/s  MFU {mfu:.1%}  ETA {duration(seconds_left)}"
        state = f"loss {loss:.3f}{validation}  {speed}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, state=state)
        elif step == self.steps or time.monotonic() - self._shown >= LINE_EVERY:
            self._shown = time.monotonic()
            self.say(f"step {step}/{self.steps}  {state}")

    def evaluation(self, step: int, val_loss: float, bits_per_byte: float, text: str | None) -> None:
        """How an evaluation went, and the first line of what the model wrote."""
        self.val_loss = val_loss
        self.say(f"step {step}/{self.steps}  validation loss {val_loss:.4f}, {bits_per_byte:.4f} bits per byte", style="bold")
        if text is not None:
            flat = " ".join(text.split())
            self.say(f"  {flat[:160]}{'…' if len(flat) > 160 else ''}", style="dim")

    def preparing(self, what: str, done: int, total: int) -> None:
        """How far the data is (see `zoo.data.prepare`)."""
        now = time.monotonic()
        if now - self._shown >= (0.1 if self.console.is_terminal else LINE_EVERY):
            self._shown = now
            share = f" {done / total:.0%}" if total else ""
            self.say(f"data: {what}{share}", style="dim", end="\r" if self.console.is_terminal else "\n")
