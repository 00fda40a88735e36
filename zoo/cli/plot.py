"""`zoo plot`: plot the curves of runs in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from zoo.cli.options import argument, flag, option


def run(
    folders: list[Path] = argument("Runs, or folders with runs below them.", default=..., metavar="RUN..."),
    x: Literal["tokens", "steps", "seconds", "flops"] = option("The x-axis.", "--x", default="tokens"),
    y: str = option("The metric. loss draws training and validation.", "--y", default="loss"),
    smooth: float = option("Moving average over this fraction of a run; 0 draws every point.", default=0.04),
    log: bool = flag("Logarithmic y-axis."),
    out: Path = option("A .png or .svg file.", "--out", "-o", default=Path("plot.png")),
) -> None:
    """Plot the curves of runs in one figure. Runs may still be in progress."""
    from zoo.cli.showing import shorten_labels
    from zoo.report.history import collect_runs
    from zoo.report.runplot import draw_runs

    records = collect_runs(folders)
    labels = shorten_labels([str(each.folder.resolve()) for each in records])
    draw_runs(dict(zip(labels, records, strict=True)), out, x=x, metric=y, share=smooth, log=log)
    print(out)
