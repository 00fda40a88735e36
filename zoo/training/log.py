"""Average what steps measure, and write a run's files of lines: metrics and samples."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from zoo.errors import CheckpointError, ZooError
from zoo.lazy import torch
from zoo.runs import METRICS, SAMPLES, TABLE, read_lines
from zoo.training.loggers import Relay
from zoo.untrusted.paths import find_inside
from zoo.untrusted.text import quote

APPENDED = (METRICS, TABLE, SAMPLES)
NONFINITE = "nonfinite.jsonl"  # a line for each skipped update; there once there was one
EVALUATION = ("val_loss", "bits_per_byte")

LATEST = ("lr",)
"""What has the value of the last step instead."""


class Means:
    """The mean of each term of the loss, of the gradient's norm and of the experts' loads since the last line, over the
    steps in which it is a number.

    Sums are float64 and stay on the device, so that adding does not wait for it. Losses of 4.0, 3.0 and 2.0 at a
    `log_every` of 3 make a line with 3.0; with 1, each line has its step's own.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Any, Any]] = {}  # and how many steps each is of

    def add(self, terms: Mapping[str, Any]) -> None:
        """Add a step's terms: tensors of one element, or numbers."""
        for name, value in terms.items():
            value = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
            value = value.double()
            total, count = (0.0, 0) if name in LATEST else self._sums.get(name, (0.0, 0))
            finite = value.isfinite()
            self._sums[name] = total + value.where(finite, 0.0), count + finite

    def take(self) -> dict[str, float]:
        """Give the means, and begin anew. Waits for the device."""
        means = {name: total / count for name, (total, count) in self.state().items() if count}
        self._sums = {}
        return means

    def state(self) -> dict[str, tuple[float, int]]:
        """Give what a checkpoint between two lines keeps, so that a resumed run writes the same next line."""
        return {name: (float(total), int(count)) for name, (total, count) in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums of a checkpoint."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


class Records:
    """The files that a run appends to. Each line is flushed before the next step, so a killed run loses none.

    `lengths` are the files' lengths at the checkpoint that the run resumes from: what was written later is cut off.
    `measures` are the metrics of an evaluation that the table has columns for beside the usual ones.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int] | None = None, measures: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.evaluation = (*EVALUATION, *measures)
        self.failed = False  # a line could not be written, so the files lack it
        for name, length in (lengths or {}).items():
            cut_file(find_record(folder, name), length)
        self.lines: list[dict[str, Any]] = []
        if lengths:
            self.lines = read_lines(folder / METRICS)
        self.relay: Relay | None = None
        """A tracker that gets lines and samples too."""
        mode = "a" if lengths else "w"
        self._files = {name: self._open(name, mode) for name in APPENDED}
        if NONFINITE in (lengths or {}):
            self._files[NONFINITE] = self._open(NONFINITE, mode)
        else:
            (folder / NONFINITE).unlink(missing_ok=True)  # of steps that are repeated, or of a run that left nothing

    def write_line(self, **line: Any) -> None:
        """Append a line of metrics. The first one sets the columns of the table."""
        if not self.lines:
            self._row([*line, *self.evaluation])
        self.lines.append(line)
        self._append(METRICS, json.dumps(line) + "\n")
        self._row([line.get(column, "") for column in [*self.lines[0], *self.evaluation]])
        if self.relay is not None:
            self.relay.write_line(line)

    def write_sample(self, step: int, text: str) -> None:
        """Append what the model wrote after a step."""
        self._append(SAMPLES, f"──── step {step} ────\n{text}\n\n")
        if self.relay is not None:
            self.relay.write_sample(step, text)

    def write_nonfinite(self, line: str) -> None:
        """Append a line about an update that was skipped."""
        self._append(NONFINITE, line + "\n")

    def lengths(self) -> dict[str, int]:
        """Flush the files to the disk and return their lengths in bytes: what `Records` resumes from. Raises ZooError
        where they are gone."""
        for name in self._files:
            self._refuse_gone(name)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self, status: str = "done") -> None:
        """Close the files, and the tracker with how the run ended: done, failed or stopped."""
        if self.relay is not None:
            self.relay.close(status)
        for file in self._files.values():
            with suppress(OSError):  # of a full disk, which has been told
                file.close()

    def _open(self, name: str, mode: str) -> TextIO:
        return (self.folder / name).open(mode, encoding="utf-8", newline="\n")  # type: ignore[return-value]

    def _row(self, values: Iterable[Any]) -> None:
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow(values)
        self._append(TABLE, row.getvalue())

    def _refuse_gone(self, name: str) -> None:
        """Raise ZooError where a file was deleted: what is written into one that has no name is lost."""
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


class Unwritten(Records):
    """The records of a process that leaves writing to the main one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failed, self.relay, self.evaluation = folder, False, None, ()
        self.lines, self._files = [], {}

    def _append(self, name: str, text: str) -> None:
        pass


def find_record(folder: Path, name: str) -> Path:
    """Find one of a run's files of lines by its name. Raises CheckpointError for any other, and for a link."""
    place = f"{folder}: lengths of its checkpoint"
    if name not in (*APPENDED, NONFINITE):
        known = ", ".join((*APPENDED, NONFINITE))
        raise CheckpointError(f"{place}: {quote(name)} is no file that a run appends to (one of: {known})")
    return find_inside(folder, name, place)


def cut_file(file: Path, length: int) -> None:
    """Cut a file back to a length that it once had. Raises CheckpointError when it is shorter than that."""
    found = file.stat().st_size if file.is_file() else 0
    if found < length:
        raise CheckpointError(f"{file}: has lost lines, found {found} bytes of {length} (as the run left it)")
    os.truncate(file, length)
