"""`zoo ladder`: train one architecture at several sizes by one rule, and fit a scaling law to them."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import report
from zoo.cli.common import Overrides, ended_by_sigterm, read_arms, say
from zoo.cli.completing import complete_target
from zoo.cli.options import argument, flag, option
from zoo.cli.outlook import note_crowding
from zoo.cli.setup import read_amount
from zoo.cli.showing import Json
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.ladder import Ladder


def run(
    model: str = argument("A packaged model or a file.", default=..., autocompletion=complete_target),
    overrides: Overrides = None,
    sizes: int = option("Number of model sizes; the largest is held out.", default=5, min=4, max=20),
    smallest: str | None = option(
        "The smallest size, in parameters: 20K. [default: a 16th of the largest]", metavar="NUMBER"
    ),
    largest: str | None = option("The largest size, in parameters: 600K, 1B. [default: the model's]", metavar="NUMBER"),
    tokens_per_param: float = option(
        "Tokens per parameter; decays end at 1, 2 and 4 times this number.", default=20.0, min=0.1
    ),
    seeds: int = option("Seeds per size; four are enough to estimate the noise of a run.", default=1, min=1, max=100),
    tune: bool = flag("Search the learning rate at two sizes first, and interpolate it for the others."),
    arm: list[str] | None = option(
        "An arm and its overrides; the first is the baseline of speedups. May be given several times.",
        metavar="NAME=OVERRIDES",
    ),
    plan: bool = flag("Print sizes, training tokens, FLOPs and time; train nothing.", "--plan", "--dry-run"),
    out: Path | None = option("The ladder's folder. [default: ladders/MODEL]", "--out", "-o"),
    bootstrap: int = option("Number of bootstrap resamples, for intervals.", default=1000, min=0, max=10_000),
    as_json: Json = False,
) -> None:
    """Train one architecture at several sizes, scaled by one rule (printed by --plan), and fit a scaling law to them.

    Each run has a WSD schedule (wsd_s) whose decays end at 1, 2 and 4 × 20 tokens per parameter: three points per run.
    The largest size is held out: its losses are predicted from the others before it is trained. The same command
    resumes an interrupted ladder.

    With --arm a ladder is trained for each arm, and the compute-optimal speedup over the first arm is given at each
    size: does a gain survive scale?

    Overrides are those of zoo train: attention=mqa, data=text data.path=FOLDER, seq_len=128, optim.lr=3e-3 (all sizes).

    \b
    Example:
      zoo ladder llama-tiny --arm plain= --arm relu2=ffn.activation=relu2 --tune
    """
    from zoo.ladder import LadderRequest, plan_together, predict_seconds
    from zoo.ladder.climbing import LADDER

    low, high = (
        None if value is None else read_amount(value, name, "20K, 60M or 1e9")
        for name, value in (("smallest", smallest), ("largest", largest))
    )
    arms = read_arms(arm or []) or {"": ""}
    if "" not in arms and len(arms) < 2:
        raise ConfigError(f"arm: {next(iter(arms))} is the only one (two at least, or none)")
    folder, asked = out or Path("ladders", Path(model).stem), {}
    for name, words in arms.items():
        named, own = _split_model(model, [*(overrides or ()), *shlex.split(words)])
        asked[name] = LadderRequest(named, tuple(own), sizes, low, high, tokens_per_param, seeds, tune)
    ladders = plan_together(asked)
    for name, ladder in ladders.items():
        if plan or not (folder / name / LADDER).is_file():
            ladders[name] = predict_seconds(ladder)
    if plan or not as_json:
        print_plans(ladders, as_json)
    if plan:
        return
    with ended_by_sigterm():
        if "" in arms:
            _climb(ladders[""], folder, bootstrap, as_json)
        else:
            _climb_arms(ladders, folder, bootstrap, as_json)


def _split_model(model: str, words: list[str]) -> tuple[str, list[str]]:
    """Return an arm's model (the last `model=…`, else `model`) and its other overrides."""
    named = [each.removeprefix("model=") for each in words if each.startswith("model=")]
    return [model, *named][-1], [each for each in words if not each.startswith("model=")]


def print_plans(ladders: dict[str, Ladder], as_json: bool) -> None:
    """Print the plan of each arm's ladder: sizes, lengths, FLOPs and time; then their sums and the scaling rule."""
    from zoo.ladder.ladder_tables import RULE, format_plan, format_total, make_plan_table

    if as_json:
        plans = {name: each.to_dict() for name, each in ladders.items()}
        return print(report.format_json(plans.get("", plans)))
    for name, each in ladders.items():
        report.print_tables(*([f"{name}:"] if name else []), make_plan_table(each.to_dict()))
        print(format_plan(each))
    if len(ladders) > 1:
        print(f"\n{format_total([*ladders.values()])}")
    timed = any(rung.seconds is not None for each in ladders.values() for rung in each.rungs)
    print(*(note_crowding() if timed else []), RULE, sep="\n")


def _climb(ladder: Ladder, folder: Path, bootstrap: int, as_json: bool) -> None:
    from zoo.ladder import climb
    from zoo.ladder.ladder_tables import describe_climb

    outcome = climb(ladder, folder, say, bootstrap)
    if as_json:
        return print(report.format_json(outcome))
    report.print_tables(*describe_climb(outcome))
    files = "report.html, points.jsonl (zoo fit), fit.json (zoo predict), prediction.json, ladder.svg"
    print(f"{folder}: {files}, a folder for each run")


def _climb_arms(ladders: dict[str, Ladder], folder: Path, bootstrap: int, as_json: bool) -> None:
    """Train the ladders of arms; print the results of each, and the speedups over the first."""
    from zoo.ladder.climbing import climb_arms, describe_arms
    from zoo.ladder.ladder_tables import make_speedup_table

    outcomes, trends = climb_arms(ladders, folder, say, bootstrap)
    if as_json:
        found = {"arms": outcomes, "speedups": {name: asdict(each) for name, each in trends.items()}}
        return print(report.format_json(found))
    report.print_tables(*describe_arms(outcomes), make_speedup_table(next(iter(ladders)), trends))
    print(f"{folder}: report.html, and a ladder in a folder for each arm")
