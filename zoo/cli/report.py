"""`zoo report`: which arms of an experiment are better than its baseline, worse, or not told apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.showing import Csv, Json, Markdown, Shown, choose_format


def run(
    folders: Annotated[list[Path], typer.Argument(metavar="SWEEP...", help="Folders with runs: a sweep, or several.")],
    baseline: Annotated[
        str | None, typer.Option(help="The arm that the others are held against. [default: the first]")
    ] = None,
    metric: Annotated[str, typer.Option(help="What is compared, of which less is better.")] = "val_loss",
    as_json: Json = False,
    as_csv: Csv = False,
    as_md: Markdown = False,
) -> None:
    """Compare the arms of an experiment: runs whose overrides differ, each with the same seeds.

    Losses are paired by seed. An arm is better or worse where Student's t says so at 5 %, corrected for the number of
    arms (Holm, 1979); else it is not told apart, and how many seeds would tell is said.
    """
    from zoo import report
    from zoo.report.arms import HEADER, Report, group_arms, name_costs
    from zoo.report.history import collect_runs

    shown = choose_format(as_json, as_csv, as_md)
    arms, unfinished = group_arms(collect_runs(folders))
    for line in unfinished:
        print(line, file=sys.stderr)
    made = Report.make(arms, baseline, metric)
    header = [each.format(metric=metric) for each in HEADER]
    if shown is Shown.json:
        print(report.format_json(made.to_dict()))
    elif shown is Shown.csv:
        print(report.format_csv(header, made.rows()), end="")
    elif shown is Shown.md:
        print(report.format_markdown(header, made.rows()))
        print(report.format_markdown(name_costs(), made.cost_rows()), end="")
    else:
        costs = report.make_table("What they cost", name_costs(), made.cost_rows(), right=range(1, 6))
        report.print_tables(report.make_table("", header, made.rows(), right=(1, 2, 3, 4)), costs)
