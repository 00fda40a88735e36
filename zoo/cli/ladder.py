"""`zoo ladder`: train one architecture at several sizes by one rule, and fit a scaling law to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zoo import report
from zoo.cli.common import Overrides, say
from zoo.cli.completing import complete_target
from zoo.cli.options import argument, flag, option
from zoo.cli.setup import read_amount
from zoo.cli.showing import Json
from zoo.errors import Terminated
from zoo.report.scaling import format_head, make_fit_tables

if TYPE_CHECKING:
    from zoo.ladder import Ladder


def run(
    model: str = argument("A packaged model or a file.", default=..., autocompletion=complete_target),
    overrides: Overrides = None,
    sizes: int = option("Number of model sizes; the largest is held out.", default=5, min=4, max=20),
    smallest: str | None = option("Parameters: 20K, 60M. [default: a 16th of the largest]", metavar="NUMBER"),
    largest: str | None = option("Parameters: 600K, 1B. [default: the model's]", metavar="NUMBER"),
    tokens_per_param: float = option(
        "Tokens per parameter; decays end at 0.5, 1, 2 and 4 times this number.", default=20.0, min=0.1
    ),
    plan: bool = flag("Print sizes, lengths, FLOPs and seconds; train nothing.", "--plan", "--dry-run"),
    out: Path | None = option("The ladder's folder. [default: ladders/MODEL]", "--out", "-o"),
    bootstrap: int = option("Bootstrap resamples for intervals.", default=1000, min=0, max=10_000),
    as_json: Json = False,
) -> None:
    """Train one architecture at several sizes by one rule, and fit a scaling law to them.

    Each size is trained once with a WSD schedule (wsd_s) whose decays end at 0.5, 1, 2 and 4 × 20 tokens per parameter:
    four points per run. The largest is held out: its losses are predicted from the others before its run begins. The
    same command resumes an interrupted ladder.

    Overrides are those of zoo train: attention=mqa, data=text data.path=FOLDER, seq_len=128, optim.lr=3e-3 (all sizes).
    """
    from zoo.ladder import LadderRequest, plan_ladder, predict_seconds
    from zoo.ladder.climbing import LADDER
    from zoo.ladder.ladder_tables import format_plan, make_plan_table

    low, high = (
        None if value is None else read_amount(value, name, "20K, 60M or 1e9")
        for name, value in (("smallest", smallest), ("largest", largest))
    )
    ladder = plan_ladder(LadderRequest(model, tuple(overrides or ()), sizes, low, high, tokens_per_param))
    folder = out or Path("ladders", Path(model).stem)
    if plan or not (folder / LADDER).is_file():
        ladder = predict_seconds(ladder)
    if plan and as_json:
        print(report.format_json(ladder.to_dict()))
        return
    if not as_json:
        report.print_tables(make_plan_table(ladder.to_dict()))
        print(format_plan(ladder.to_dict()))
    if not plan:
        _climb(ladder, folder, bootstrap, as_json)


def _climb(ladder: Ladder, folder: Path, bootstrap: int, as_json: bool) -> None:
    """Train a ladder and print its results. After a SIGTERM, exits with 0 once the checkpoint is written, as a single
    run does."""
    from zoo.analysis.scaling import FittedLaw
    from zoo.ladder import climb
    from zoo.ladder.ladder_tables import describe_climb

    try:
        outcome = climb(ladder, folder, say, bootstrap)
    except Terminated:
        raise typer.Exit(0) from None
    if as_json:
        print(report.format_json(outcome))
        return
    fit = FittedLaw.from_dict(outcome["fit"])
    report.print_tables(*describe_climb(outcome))
    print(format_head(fit))
    report.print_tables(*make_fit_tables(fit, []))
    print(
        f"{folder}: points.jsonl (zoo fit), fit.json (zoo predict), prediction.json, ladder.svg, a folder for each run"
    )
