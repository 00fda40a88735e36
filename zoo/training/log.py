"""Average the measurements of steps, and write a run's files of metrics and samples, a line at a time."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from zoo.errors import CheckpointError, ZooError
from zoo.lazy import Tensor, torch
from zoo.run.late_values import LateValues
from zoo.runs import METRICS, SAMPLES, TABLE, read_lines
from zoo.training.loggers import Relay
from zoo.untrusted.printable import quote
from zoo.untrusted.stated_paths import find_inside

APPENDED = (METRICS, TABLE, SAMPLES)
NONFINITE = "nonfinite.jsonl"  # a line for each skipped update, if any
EVALUATION = ("val_loss", "bits_per_byte")

LATEST = ("lr",)
"""Terms that are not averaged: the last step's value counts."""


class Means:
    """Means since the last line of metrics: of each term of the loss, the gradient's norm and the experts' loads. Steps
    in which a value is not finite do not count for the value's mean.

    Sums are float64 and stay on the device, so adding does not wait for the device. Example: losses of 4.0, 3.0 and 2.0
    with `log_every=3` give a line with 3.0.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, Any]] = {}  # (sum, number of steps)

    def add(self, terms: Mapping[str, Any]) -> None:
        """Add a step's terms: tensors of one element, or numbers."""
        for name, value in terms.items():
            value = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
            value = value.double()
            total, count = (0.0, 0) if name in LATEST else self._sums.get(name, (0.0, 0))
            finite = value.isfinite()
            self._sums[name] = total + value.where(finite, 0.0), count + finite

    def take(self) -> Callable[[], dict[str, float]]:
        """Reset the means, and copy them to the host. Returns a function that waits for these means, but not for later
        steps."""
        sums = self._send()
        self._sums = {}
        return lambda: {name: total / count for name, (total, count) in sums().items() if count}

    def state(self) -> dict[str, tuple[float, int]]:
        """Return the sums for a checkpoint between two lines, so that a resumed run writes the same next line. Waits
        for the device."""
        return self._send()()

    def _send(self) -> Callable[[], dict[str, tuple[float, int]]]:
        if not self._sums:
            return dict
        names, numbers = list(self._sums), [number for pair in self._sums.values() for number in pair]
        late = LateValues(_stack(numbers).view(-1, 2))
        return lambda: {name: (total, int(count)) for name, (total, count) in zip(names, late.read(), strict=True)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the sums of a checkpoint."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


def _stack(numbers: Sequence[Any]) -> Tensor:
    """Stack numbers [N], some of them tensors of one element, on the device of these tensors, without waiting for
    it."""
    devices = [each.device for each in numbers if isinstance(each, torch.Tensor)]
    device = next((each for each in devices if each.type != "cpu"), torch.device("cpu"))
    return torch.stack(
        [
            each.double()
            if isinstance(each, torch.Tensor) and each.device == device
            else torch.full((), float(each), dtype=torch.float64, device=device)
            for each in numbers
        ]
    )


class RunLog:
    """The files that a run appends to. Each line is flushed when it is written, so a killed run loses none of them.

    `lengths` are the files' lengths in bytes at the checkpoint to resume from: later lines are cut off. `measures` are
    an objective's own metrics of evaluation, which get columns in the table.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int] | None = None, measures: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.evaluation = (*EVALUATION, *measures)
        self.failed = False  # a line could not be written and is missing
        for name, length in (lengths or {}).items():
            cut_file(find_record(folder, name), length)
        self.lines: list[dict[str, Any]] = read_lines(folder / METRICS) if lengths else []
        self.relay: Relay | None = None
        """A tracker that gets lines and samples too."""
        mode = "a" if lengths else "w"
        self._files = {name: self._open(name, mode) for name in APPENDED}
        if NONFINITE in (lengths or {}):
            self._files[NONFINITE] = self._open(NONFINITE, mode)
        else:
            (folder / NONFINITE).unlink(missing_ok=True)  # of steps to be repeated, or of an earlier run

    def write_line(self, **line: Any) -> None:
        """Append a line of metrics. The first line's keys are the columns of the table."""
        if not self.lines:
            self._row([*line, *self.evaluation])
        self.lines.append(line)
        self._append(METRICS, json.dumps(line) + "\n")
        self._row([line.get(column, "") for column in [*self.lines[0], *self.evaluation]])
        if self.relay is not None:
            self.relay.write_line(line)

    def write_sample(self, step: int, text: str) -> None:
        """Append a sample of the model's text after a step."""
        self._append(SAMPLES, f"──── step {step} ────\n{text}\n\n")
        if self.relay is not None:
            self.relay.write_sample(step, text)

    def write_nonfinite(self, line: str) -> None:
        """Append a line about a skipped update."""
        self._append(NONFINITE, line + "\n")

    def lengths(self) -> dict[str, int]:
        """Flush the files to disk and return their lengths in bytes, for resuming. Raises ZooError if one is gone."""
        for name in self._files:
            self._refuse_gone(name)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self, status: str = "done") -> None:
        """Close the files, and the tracker with the run's final status: done, failed or stopped."""
        if self.relay is not None:
            self.relay.close(status)
        for file in self._files.values():
            with suppress(OSError):  # the disk is full, which was reported already
                file.close()

    def _open(self, name: str, mode: str) -> TextIO:
        return (self.folder / name).open(mode, encoding="utf-8", newline="\n")  # type: ignore[return-value]

    def _row(self, values: Iterable[Any]) -> None:
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow(values)
        self._append(TABLE, row.getvalue())

    def _refuse_gone(self, name: str) -> None:
        """Raise ZooError if a file was deleted, because lines written to it would be lost."""
        if not (self.folder / name).exists():
            self.failed = True
            what = "is gone" if not self.folder.exists() else f"its {name} is gone"
            raise ZooError(f"{self.folder}: {what}, deleted while the run was training (a new run)")

    def _append(self, name: str, text: str) -> None:
        if name not in self._files:
            self._files[name] = self._open(name, "a")
        self._refuse_gone(name)
        try:
            self._files[name].write(text)
            self._files[name].flush()
        except OSError:
            self.failed = True
            raise


class Unwritten(RunLog):
    """Stands in for the record files in processes other than the main one: writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failed, self.relay, self.evaluation = folder, False, None, ()
        self.lines, self._files = [], {}

    def _append(self, name: str, text: str) -> None:
        pass


def find_record(folder: Path, name: str) -> Path:
    """Find one of a run's files of lines by its name. Raises CheckpointError for any other name, and for a link."""
    place = f"{folder}: lengths of its checkpoint"
    if name not in (*APPENDED, NONFINITE):
        known = ", ".join((*APPENDED, NONFINITE))
        raise CheckpointError(f"{place}: {quote(name)} is no file that a run appends to (one of: {known})")
    return find_inside(folder, name, place)


def cut_file(file: Path, length: int) -> None:
    """Truncate a file to an earlier `length` in bytes. Raises CheckpointError if the file is shorter already."""
    found = file.stat().st_size if file.is_file() else 0
    if found < length:
        raise CheckpointError(f"{file}: has lost lines, found {found} bytes of {length} (as the run left it)")
    os.truncate(file, length)
