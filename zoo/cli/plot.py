"""`zoo plot`: plot the curves of runs in one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from zoo.cli.options import argument, flag, option


def run(
    folders: list[Path] = argument("Runs, or folders with runs below them.", default=..., metavar="RUN..."),
    x: Literal["tokens", "steps", "seconds", "flops"] = option("The x-axis.", "--x", default="tokens"),
    y: str = option("The metric; loss draws training and validation loss.", "--y", default="loss"),
    smooth: float = option("Moving average over this fraction of a run; 0 draws every point.", default=0.04),
    log: bool = flag("Logarithmic y-axis."),
    out: Path = option("A .png or .svg file.", "--out", "-o", default=Path("plot.png")),
) -> None:
    """Plot the curves of runs in one figure. Runs may still be in progress.

    Runs are labelled by the overrides in which they differ. A sweep's runs that searched for a learning rate are left
    out unless named one by one; zoo report --plot draws the search.
    """
    from zoo.cli.common import print_note
    from zoo.cli.showing import shorten_labels
    from zoo.report.arms import name_runs
    from zoo.report.history import collect_runs
    from zoo.report.runplot import draw_runs

    found = collect_runs(folders)
    named = {each.expanduser() for each in folders}
    records = [each for each in found if each.folder in named or not each.of_search] or found
    if left := len(found) - len(records):
        print_note(
            f"runs of a search for learning rates that are not drawn: {left} (zoo report --plot draws the search)"
        )
    names, places = name_runs([each.overrides for each in records]), [str(each.folder.resolve()) for each in records]
    told = [name if name and names.count(name) == 1 else "" for name in names]
    labels = [name or place for name, place in zip(told, shorten_labels(places), strict=True)]
    draw_runs(dict(zip(labels, records, strict=True)), out, x=x, metric=y, share=smooth, log=log)
    print(out)
