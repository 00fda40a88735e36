"""Show a run's progress: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from zoo.report import format_si
from zoo.report.console import make_console
from zoo.report.history import MEASURES

LINE_EVERY = 10.0  # seconds between plain lines
WATCHED = "ZOO_WATCHED"
"""An environment variable, set while another process shows the progress of runs on this terminal (`zoo train -m`)."""

EXCERPT = 160  # maximum characters of a sample that are shown
ACROSS = 4  # figures per row of the live view

FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "loss": ("loss", "{:.3f}".format),
    "lr": ("lr", "{:.2e}".format),
    "grad_norm": ("grad norm", "{:.2f}".format),
    "tokens_per_second": ("tok/s", "{:,.0f}".format),
    "mfu": ("MFU", "{:.1%}".format),
    "memory": ("memory", lambda value: format_si(value, "B")),
    "load_max": ("busiest expert", "{:.2f} loads".format),
    "load_min": ("idlest", "{:.2f}".format),
}
"""The metrics shown, with their labels and formats."""


def format_duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Show:
    """Shows a run's progress on standard error; standard output is for results."""

    def __init__(self, steps: int, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or make_console(stderr=True, soft_wrap=True, quiet=quiet)
        self.steps = steps
        self.watched = self.console.is_terminal and WATCHED in os.environ
        self._shown = 0.0
        self._preparing = ""
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._figures: dict[str, str] = {}

    def __enter__(self) -> Show:
        if self.console.is_terminal and not self.console.quiet and not self.watched:
            columns = [TextColumn("step"), MofNCompleteColumn(), BarColumn(None), TaskProgressColumn()]
            self._bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=self.console, expand=True)
            self._bar.add_task("", total=self.steps, left="")
            self._live = Live(self._view(), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _view(self) -> Any:
        """Make the live view: the bar, and below it the newest figures in columns."""
        table = Table.grid(padding=(0, 3))
        rows = list(self._figures.items())
        for row in (rows[at : at + ACROSS] for at in range(0, len(rows), ACROSS)):
            table.add_row(*(Text.assemble((f"{name} ", "dim"), value) for name, value in row))
        return Group(self._bar, table) if rows and self._bar is not None else self._bar

    def _refresh(self, figures: Mapping[str, str]) -> None:
        self._figures |= figures
        if self._live is not None:
            self._live.update(self._view())

    def say(self, text: str, **style: Any) -> None:
        self.console.print(text, markup=False, **style)

    def step(self, step: int, metrics: Mapping[str, Any], seconds_left: float) -> None:
        """Show a training step: its metrics, and the time left. Unknown metrics (None), such as MFU without a known
        peak, are left out."""
        known = {name: value for name, value in metrics.items() if value is not None}
        figures = {label: form(known[name]) for name, (label, form) in FIGURES.items() if name in known}
        left = f"ETA {format_duration(seconds_left)}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, left=left)
            self._refresh(figures)
        elif self.watched:
            return
        elif step in (1, self.steps) or time.monotonic() - self._shown >= LINE_EVERY:
            self._shown = time.monotonic()
            share = f"  MFU {figures['MFU']}" if "MFU" in figures else ""
            loss = figures.get("loss", "no number")  # if every update was skipped
            self.say(f"step {step}/{self.steps}  loss {loss}  {figures['tok/s']} tok/s{share}  {left}")

    def evaluation(
        self, step: int, val_loss: float, bits_per_byte: float | None, measured: Mapping[str, float] | None = None
    ) -> None:
        """Show the result of an evaluation; `measured` are its other metrics by name."""
        if self.watched:
            return
        named = {MEASURES[name]: f"{value:.4f}" for name, value in (measured or {}).items()}
        self._refresh({"val loss": f"{val_loss:.4f}", **named})
        bits = "" if bits_per_byte is None else f", {bits_per_byte:.4f} bits per byte"
        more = "".join(f", {label} {value}" for label, value in named.items())
        self.say(f"step {step}/{self.steps}  validation loss {val_loss:.4f}{bits}{more}", style="bold")

    def sample(self, text: str) -> None:
        """Show the start of a sample."""
        if self.watched:
            return
        flat = " ".join(text.split())
        self.say(f"  {flat[:EXCERPT]}{'…' if len(flat) > EXCERPT else ''}", style="dim")

    def preparing(self, what: str, done: int, total: int) -> None:
        """Show the progress of preparing the data (`zoo.data.prepare`)."""
        if self.watched:
            return
        if self.console.is_terminal:
            share = f" {done / total:.0%}" if total else ""
            self.say(f"data: {what}{share}".ljust(40), style="dim", end="\r")
        elif what != self._preparing:
            self.say(f"data: {what}")
        self._preparing = what
