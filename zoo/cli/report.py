"""`zoo report`: tell which arms of an experiment are better, worse or not significantly different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import report
from zoo.cli.common import say
from zoo.cli.options import argument, option
from zoo.cli.showing import OutputOptions, Shown
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.report.verdicts import Report


def run(
    folders: list[Path] = argument("Folders with runs: a sweep, or several.", default=..., metavar="SWEEP..."),
    baseline: str | None = option("The baseline arm. [default: the first]"),
    metric: str | None = option("The metric to compare. [default: the experiment's, or val_loss]"),
    margin: float | None = option(
        "Equivalence margin: the largest difference that does not matter. [default: the experiment's, or none]"
    ),
    fit: Path | None = option("The baseline's scaling law (zoo fit --out), for effective speedups.", metavar="FIT"),
    plot: Path | None = option("Draw the verdicts to this file (.png, .svg).", metavar="FILE"),
    html: Path | None = option("Write a self-contained HTML page to this file.", metavar="FILE"),
    *,
    output: OutputOptions,
) -> None:
    """Compare the arms of an experiment: runs whose overrides differ, each with the same seeds.

    Losses are paired by seed. An arm is better or worse if Student's t-test at the 5 % level says so, Holm-corrected
    over all arms, or over all comparisons of an experiment; equivalent if its difference is shown to be within
    --margin; else the comparison is inconclusive, and the minimum detectable difference is given. Diverged runs count,
    and rank last.
    """
    from zoo.experiments.looking import report_folders

    if margin is not None and not 0 < margin < float("inf"):
        raise ConfigError(f"margin: is a difference above 0, found {margin:g} (--margin 0.01, say)")
    shown = output.shown
    made, unfinished = report_folders(folders, baseline, metric, margin)
    for line in unfinished:
        say(line)
    if fit is not None:
        from zoo.cli.predict import read_fit

        made = replace(made, decays=read_fit(fit).decays(made.baseline.costs["params"]))
    if plot is not None:
        from zoo.report.verdict_plot import draw_report

        draw_report(made, plot)
    if html is not None:
        from zoo.report.verdict_page import write_report_page

        write_report_page(made, ", ".join(each.resolve().name for each in folders), html)
    _print(made, shown)


def _print(made: Report, shown: Shown) -> None:
    from zoo.report.verdicts import VALUES

    if shown is Shown.json:
        print(report.format_json(made.to_dict()))
    elif shown is Shown.csv:
        print(report.format_csv(VALUES, made.values()))
    elif shown is Shown.md:
        print("\n\n".join(report.format_markdown(header, rows) for _, header, rows, _ in made.tables()))
        print("".join(f"\n- {each}" for each in made.hints()))
    else:
        first, *others = made.tables()
        report.print_tables(first._replace(title=""), *others)
        print("\n".join(made.hints()), end="\n" if made.hints() else "")
