"""What a run leaves behind (metrics, samples, a picture of the loss) and what it shows while it is at work."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError

METRICS, TABLE, SAMPLES, PICTURE = "metrics.jsonl", "metrics.csv", "samples.txt", "loss.png"
APPENDED = (METRICS, TABLE, SAMPLES)
EVALUATION = ("val_loss", "bits_per_byte")
SMOOTHED_OVER = 0.04  # of the run: the span of the training curve's moving average


class Records:
    """The files that a run appends to. Each line is out before the next step, so a killed run loses none.

    `lengths` are the files' as a checkpoint had them: lines written after it are cut off before going on.
    """

    def __init__(self, folder: Path, lengths: Mapping[str, int] | None = None) -> None:
        self.folder = folder
        for name, length in (lengths or {}).items():
            cut(folder / name, length)
        self.lines: list[dict[str, Any]] = []
        if lengths:
            self.lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        mode = "a" if lengths else "w"
        self._files = {name: (folder / name).open(mode, encoding="utf-8", newline="\n") for name in APPENDED}

    def write(self, **line: Any) -> None:
        """A line of metrics. The first one names the columns that training has."""
        if not self.lines:
            self._row([*line, *EVALUATION])
        self.lines.append(line)
        self._append(METRICS, json.dumps(line) + "\n")
        self._row([line.get(column, "") for column in [*self.lines[0], *EVALUATION]])

    def sample(self, step: int, text: str) -> None:
        """What the model wrote after a step."""
        self._append(SAMPLES, f"──── step {step} ────\n{text}\n\n")

    def lengths(self) -> dict[str, int]:
        """Bytes of each file, all of them on disk: what `Records` needs to go on from here."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _row(self, values: Iterable[Any]) -> None:
        file = self._files[TABLE]
        csv.writer(file, lineterminator="\n").writerow(values)
        file.flush()

    def _append(self, name: str, text: str) -> None:
        self._files[name].write(text)
        self._files[name].flush()


def cut(file: Path, length: int) -> None:
    """Cuts a file to a length that it once had. Raises CheckpointError when it is shorter now."""
    found = file.stat().st_size if file.is_file() else 0
    if found < length:
        raise CheckpointError(f"{file}: has lost lines, found {found} bytes of {length} (as the run left it)")
    os.truncate(file, length)


def curve(lines: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Tokens seen and the values of a metric, where it was measured."""
    points = [(line["tokens"], line[name]) for line in lines if name in line]
    return [tokens for tokens, _ in points], [value for _, value in points]


def smooth(values: list[float]) -> list[float]:
    """The mean of the values around each; at the start as few after it as before, since there the loss falls fast."""
    half, sums = int(SMOOTHED_OVER * len(values) / 2), [0.0, *accumulate(values)]
    edges = [(max(at - half, 0), min(at + min(half, at) + 1, len(values))) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]


def draw(lines: list[dict[str, Any]], title: str, file: Path) -> None:
    """Training and validation loss over the tokens seen, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    tokens, losses = curve(lines, "loss")
    axes.plot(tokens, losses, color="tab:blue", alpha=0.2, linewidth=0.8)
    axes.plot(tokens, smooth(losses), color="tab:blue", linewidth=1.8, label="training")
    tokens, losses = curve(lines, "val_loss")
    if losses:
        axes.plot(tokens, losses, "o-", color="tab:orange", markersize=4, linewidth=1.8, label="validation")
        where = {"xytext": (0, 8), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"{losses[-1]:.3f}", (tokens[-1], losses[-1]), color="tab:orange", **where)
        last = lines[-1] if "val_loss" in lines[-1] else next(line for line in reversed(lines) if "val_loss" in line)
        title += f": validation loss {last['val_loss']:.3f} ({last['bits_per_byte']:.3f} bits per byte)"
    axes.set_title(title)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss (nats per token)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    draft = file.with_name(f".{file.name}")  # whoever looks at it meanwhile sees a whole picture
    FigureCanvasAgg(figure).print_png(draft)
    os.replace(draft, file)
