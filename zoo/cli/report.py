"""`zoo report`: which arms of an experiment are better than its baseline, worse, or not told apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.showing import Csv, Json, Markdown, Shown, choose_format

if TYPE_CHECKING:
    from zoo.report.verdicts import Report


def run(
    folders: Annotated[list[Path], typer.Argument(metavar="SWEEP...", help="Folders with runs: a sweep, or several.")],
    baseline: Annotated[
        str | None, typer.Option(help="The arm that the others are compared with. [default: the first]")
    ] = None,
    metric: Annotated[str, typer.Option(help="The figure that is compared; less is better.")] = "val_loss",
    fit: Annotated[
        Path | None,
        typer.Option(help="The baseline's scaling law (zoo fit --out), for effective speedups.", metavar="FIT"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw into this file (.png, .svg).", metavar="FILE")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page into this file, which needs no network.", metavar="FILE")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_md: Markdown = False,
) -> None:
    """Compare the arms of an experiment: runs whose overrides differ, each with the same seeds.

    Losses are paired by seed. An arm is better or worse where Student's t says so at 5 %, corrected for the number of
    arms (Holm, 1979); else it is not told apart, and how many seeds would tell is said.
    """
    from zoo.report.arms import group_arms
    from zoo.report.history import collect_runs
    from zoo.report.verdicts import Report

    shown = choose_format(as_json, as_csv, as_md)
    arms, unfinished = group_arms(collect_runs(folders))
    for line in unfinished:
        print(line, file=sys.stderr)
    made = Report.make(arms, baseline, metric)
    if fit is not None:
        from zoo.cli.predict import read_fit

        made = made.with_decays(read_fit(fit).decays(made.baseline.costs["params"]))
    if plot is not None:
        from zoo.report.verdict_plot import draw_report

        draw_report(made, plot)
    if html is not None:
        from zoo.report.verdict_page import write_report_page

        write_report_page(made, ", ".join(each.resolve().name for each in folders), html)
    _print(made, shown)


def _print(made: Report, shown: Shown) -> None:
    from zoo import report
    from zoo.report import rates
    from zoo.report.verdicts import COSTS, FORECASTS, HEADER, SPEEDUPS, VALUES

    header = [each.format(metric=made.metric) for each in HEADER]
    if shown is Shown.json:
        print(report.format_json(made.to_dict()))
    elif shown is Shown.csv:
        print(report.format_csv(VALUES, made.values()))
    elif shown is Shown.md:
        parts = [(header, made.rows()), (COSTS, made.cost_rows()), (SPEEDUPS, made.speedup_rows())]
        parts += [(rates.HEADER, rates.list_rows(made.searches())), (FORECASTS, made.forecast_rows())]
        print("\n".join(report.format_markdown(names, rows) for names, rows in parts if rows))
        print("\n".join(f"- {each}" for each in made.hints()))
    else:
        tables = [report.make_table("", header, made.rows(), right=(1, 2, 3, 4))]
        tables.append(report.make_table("What they cost", COSTS, made.cost_rows(), right=range(1, 6)))
        if rows := made.speedup_rows():
            tables.append(report.make_table("Effective speedup", SPEEDUPS, rows, right=range(1, 4)))
        if rows := rates.list_rows(made.searches()):
            tables.append(report.make_table("Learning rates", rates.HEADER, rows, right=(1, 2)))
        if rows := made.forecast_rows():
            tables.append(report.make_table("Predicted, and measured", FORECASTS, rows, right=range(1, 7)))
        report.print_tables(*tables)
        print("\n".join(made.hints()), end="\n" if made.hints() else "")
