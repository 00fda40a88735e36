"""`zoo plot`: draw the curves of runs over one another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Axis(StrEnum):
    """The x-axis of the curves."""

    tokens = "tokens"
    steps = "steps"
    seconds = "seconds"
    flops = "flops"


def run(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders with runs below them.")],
    x: Annotated[Axis, typer.Option("--x", help="The x-axis.")] = Axis.tokens,
    y: Annotated[str, typer.Option("--y", help="The metric. loss draws training and validation.")] = "loss",
    smooth: Annotated[
        float, typer.Option(help="Window of the moving average, as a share of a run; 0 draws every point.")
    ] = 0.04,
    log: Annotated[bool, typer.Option("--log", help="A logarithmic scale for the metric.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png or .svg file.")] = Path("plot.png"),
) -> None:
    """Draw the curves of runs over one another. Runs that still go on may be drawn too."""
    from zoo.cli.showing import shorten_labels
    from zoo.report.history import collect_runs
    from zoo.report.runplot import draw_runs

    records = collect_runs(folders)
    labels = shorten_labels([str(each.folder.resolve()) for each in records])
    draw_runs(dict(zip(labels, records, strict=True)), out, x=x.value, metric=y, share=smooth, log=log)
    print(out)
