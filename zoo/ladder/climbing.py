"""Train a ladder: several sizes of one architecture. Predict the loss of the largest, and fit a scaling law to all.

    FOLDER/ladder.json       the plan of each run, with its predicted seconds
    FOLDER/rates.json        the learning rates that were searched at two sizes; their runs are in FOLDER/rates/
    FOLDER/01-19840/ …       one run per size, named by its parameters; with several seeds 01-19840-0, 01-19840-1 …
    FOLDER/points.jsonl      parameters, tokens and loss at the end of each decay, for `zoo fit`
    FOLDER/prediction.json   predicted losses of the largest size, written before its run begins
    FOLDER/fit.json          the law of all points, for `zoo predict`
    FOLDER/ladder.svg        losses over tokens, measured and predicted
    FOLDER/report.html       the page: plan, losses, prediction and law

All points of the largest size are held out, because a ladder predicts across sizes. A repeated call resumes; finished
runs are kept. The ladders of several arms give the compute-optimal speedups over the first arm by scale: an arm that is
better at a small size may save less compute, or none, at a larger size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from zoo import runs
from zoo.analysis.scaling import FittedLaw, LossPoints, fit_law
from zoo.analysis.scaling.optimal_speedup import LawArm, SpeedupTrend, follow_speedup
from zoo.analysis.scaling.points import read_points
from zoo.disk import write_text
from zoo.errors import ConfigError, FinishedRun, ZooError
from zoo.jobs.plan import plan_launch, task_config
from zoo.ladder.ladder_plan import Ladder, Rung, spell
from zoo.ladder.ladder_tables import (
    RULE,
    describe_climb,
    draw_ladder,
    draw_speedups,
    make_plan_table,
    make_speedup_table,
)
from zoo.ladder.rate_tuning import tune_rates
from zoo.report.history import RunRecord
from zoo.report.scaling import compare_held
from zoo.report.tables import TextTable
from zoo.report.verdict_page import PAGE, write_results_page
from zoo.untrusted.json_file import JsonShape, read_json
from zoo.untrusted.printable import quote

LADDER, POINTS, PREDICTION, FIT = "ladder.json", "points.jsonl", "prediction.json", "fit.json"
PICTURE = "ladder.svg"

Say = Callable[[str], object]

PREDICTED = ("seconds", "evaluating", "timed")
"""Measured fields of a rung. They may differ when the ladder is called again."""


class LadderFile(JsonShape):
    """The content of ladder.json."""

    model: str
    rungs: list[dict[str, Any]]


class PredictionFile(JsonShape):
    """The content of prediction.json."""

    doubt: str | None
    losses: list[dict[str, float]]
    fit: dict[str, Any]


def climb(ladder: Ladder, folder: Path, say: Say, bootstrap: int = 1000) -> dict[str, Any]:
    """Train all sizes that are not done. Before the run of the largest size, predict its losses. Return the outcome.

    Raises ConfigError if the folder has another ladder, and ZooError if a run fails.
    """
    ladder = _open_folder(ladder, folder)
    train = partial(_train, ladder.model, folder=folder, say=say)
    ladder = tune_rates(ladder, folder, train)
    below = [each for each in ladder.rungs if each.params != ladder.largest]
    for rung in below:
        train(rung)
    points = write_points(ladder, folder)
    prediction = _predict(ladder, points, folder, say, bootstrap)
    for rung in ladder.rungs[len(below) :]:
        train(rung)
    points = write_points(ladder, folder)
    fit = fit_law(points, bootstrap)
    held = points.select(lambda at: points.params[at] == ladder.largest)
    held_out = compare_held(FittedLaw.from_dict(prediction["fit"]), held)
    write_text(folder / FIT, json.dumps(fit.to_dict()) + "\n")
    outcome = {
        "folder": str(folder),
        "runs": [_describe_run(each, folder) for each in ladder.rungs],
        "held_out": held_out,
        "doubt": prediction["doubt"],
        "fit": fit.to_dict(),
    }
    drawn = draw_outcome(outcome)
    write_text(folder / PICTURE, drawn + "\n")
    planned = make_plan_table(ladder.to_dict())._replace(title="Plan")
    name = f"Ladder of {ladder.model}"
    write_results_page(folder / PAGE, name, pictures=[drawn], results=[*describe_climb(outcome), planned, RULE])
    return outcome


def draw_outcome(outcome: Mapping[str, Any], name: str = "") -> str:
    """Draw a ladder's losses over tokens, measured and predicted, as an SVG panel."""
    return draw_ladder(read_points(Path(outcome["folder"]) / POINTS, {}).rows(), outcome["held_out"], name)


def _open_folder(ladder: Ladder, folder: Path) -> Ladder:
    """Write ladder.json. If it exists, return the ladder with the predicted seconds from the file. Raises ConfigError
    if the file is of another ladder."""
    file = folder / LADDER
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(ladder.to_dict(), indent=2) + "\n")
        return ladder
    before = read_json(file, LadderFile)
    if lost := [name for name in PREDICTED for each in before["rungs"] if name not in each]:
        raise ConfigError(f"{file}: is no ladder, its rungs have no {lost[0]} (--out names another folder)")
    predicted = [{name: each.pop(name) for name in PREDICTED} for each in before["rungs"]]
    now = ladder.to_dict()
    for each in now["rungs"]:
        for name in PREDICTED:
            del each[name]
    if now != before:
        model = quote(before["model"])
        raise ConfigError(f"{folder}: has another ladder, of {model} (the same options, or another --out)")
    return replace(ladder, rungs=tuple(replace(each, **how) for each, how in zip(ladder.rungs, predicted, strict=True)))


def _train(model: str, rung: Rung, folder: Path, say: Say) -> RunRecord:
    """Train a run, from its last checkpoint if there is one. A finished run is not repeated."""
    from zoo.jobs.train import resume_run
    from zoo.training.restarts import clear_for_restart, has_checkpoint

    where = folder / rung.name
    if RunRecord(where).result.get("status") == "done":
        say(f"{where}: is done")
        return RunRecord(where)
    say(f"{where}: {rung.params:,} parameters, {rung.lengths.updates:,} updates of {rung.batch_tokens:,} tokens")
    try:
        with plan_launch([*spell(model, rung.overrides), f"hydra.run.dir='{where}'"]) as plan:
            if has_checkpoint(where):
                resume_run(where, typed=task_config(plan.jobs[0]))
            else:
                clear_for_restart(where)
                plan.run()
    except FinishedRun:
        pass
    finally:
        runs.remember(where)
    return RunRecord(where)


def write_points(ladder: Ladder, folder: Path) -> LossPoints:
    """Write the points of the finished runs, a line for the end of each decay. A point's tokens are those on which its
    weights were trained. Raises ZooError if a loss is missing."""
    lines = []
    for rung in ladder.rungs:
        record = RunRecord(folder / rung.name)
        if record.result.get("status") != "done":
            continue
        found = record.decayed()
        if [each["trained_tokens"] for each in found] != list(rung.tokens):
            raise ZooError(f"{record.folder}: has {len(found)} losses of {len(rung.tokens)} (remove it to train anew)")
        for each in found:
            flops = round(each["flops"] * each["trained_tokens"] / each["tokens"])
            point = {"params": rung.params, "tokens": each["trained_tokens"], "loss": each["val_loss"], "flops": flops}
            lines.append({**point, "run": rung.name, "step": each["step"]})
    write_text(folder / POINTS, "".join(json.dumps(line) + "\n" for line in lines))
    return read_points(folder / POINTS, {})


def _predict(ladder: Ladder, points: LossPoints, folder: Path, say: Say, bootstrap: int) -> dict[str, Any]:
    """Predict the losses of the largest size from those of all other sizes and write them, or read an earlier
    prediction.

    Raises ZooError if a run of the largest size has trained before its prediction was written.
    """
    file, rungs = folder / PREDICTION, [each for each in ladder.rungs if each.params == ladder.largest]
    if file.is_file():
        return read_json(file, PredictionFile)
    if trained := [each.name for each in rungs if (folder / each.name / runs.METRICS).exists()]:
        raise ZooError(f"{folder / trained[0]}: was trained before {file.name} was written (remove it to train anew)")
    kept = points.select(lambda at: points.params[at] != ladder.largest)
    fit, rung = fit_law(kept, bootstrap), rungs[0]
    predicted = {"of": rung.params, "fitted_to": len(kept), "doubt": _find_doubt(fit, rung), "fit": fit.to_dict()}
    predicted["losses"] = [
        {"params": rung.params, "tokens": tokens, "loss": fit.law.loss(rung.params, tokens)} for tokens in rung.tokens
    ]
    write_text(file, json.dumps(predicted) + "\n")
    last = predicted["losses"][-1]
    say(f"{file}: {rung.params:,} parameters after {last['tokens']:,} tokens: loss {last['loss']:.4f}, before its run")
    return predicted


def _find_doubt(fit: FittedLaw, rung: Rung) -> str | None:
    """Return the reason why `zoo predict` would refuse to predict a size from the fit. None if it would not refuse."""
    try:
        fit.check_reach(rung.params, rung.tokens[-1])
    except ConfigError as error:
        return error.faults[0]
    return None


def _describe_run(rung: Rung, folder: Path) -> dict[str, Any]:
    found = RunRecord(folder / rung.name).result
    return {
        "run": rung.name,
        "params": rung.params,
        "rate": rung.rate,
        "val_loss": found.get("val_loss"),
        "flops": found.get("flops"),
        "predicted_flops": rung.flops,
        "seconds": found.get("seconds"),
        "predicted_seconds": rung.seconds,
    }


# ---------------------------------------------------------------- several arms


def climb_arms(
    ladders: Mapping[str, Ladder], folder: Path, say: Say, bootstrap: int = 1000
) -> tuple[dict[str, dict[str, Any]], dict[str, SpeedupTrend]]:
    """Train the ladder of each arm in its own folder, and write a page of all. Return each arm's outcome, and for all
    but the first arm the speedups over the first. Raises ConfigError as `follow_arms` does."""
    outcomes = {name: climb(each, folder / name, say, bootstrap) for name, each in ladders.items()}
    trends = follow_arms(outcomes)
    results = [make_speedup_table(next(iter(outcomes)), trends), *describe_arms(outcomes)]
    name = f"Ladders: {', '.join(outcomes)}"
    write_results_page(folder / PAGE, name, pictures=draw_arms(outcomes, trends), results=results)
    return outcomes, trends


def follow_arms(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, SpeedupTrend]:
    """Compute the speedups of the other arms over the first, at the FLOPs of the first arm's full-length runs. Raises
    ConfigError for a law without an optimum."""
    first, *others = {name: read_law_arm(made) for name, made in outcomes.items()}.items()
    flops = sorted({line["params"]: float(line["flops"]) for line in _read_lines(outcomes[first[0]])}.values())
    return {name: follow_speedup(first[1], arm, flops) for name, arm in others}


def draw_arms(outcomes: Mapping[str, Mapping[str, Any]], trends: Mapping[str, SpeedupTrend]) -> list[str]:
    """Draw the speedups and each arm's ladder as SVG panels."""
    return [draw_speedups(next(iter(outcomes)), trends), *(draw_outcome(each, arm) for arm, each in outcomes.items())]


def describe_arms(outcomes: Mapping[str, Mapping[str, Any]]) -> list[str | TextTable]:
    """Make the tables of each arm's ladder, titled with the arm's name."""
    described = [(name, each) for name, outcome in outcomes.items() for each in describe_climb(outcome)]
    return [
        each._replace(title=f"{name}: {each.title}") if isinstance(each, TextTable) and each.title else each
        for name, each in described
    ]


def read_law_arm(outcome: Mapping[str, Any]) -> LawArm:
    """Read an arm's law, and the FLOPs of its points per token and parameter (geometric mean)."""
    lines = _read_lines(outcome)
    real = geometric_mean(line["flops"] / line["params"] / line["tokens"] for line in lines)
    return LawArm(FittedLaw.from_dict(outcome["fit"]), real)


def _read_lines(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(outcome["folder"]) / POINTS).read_text(encoding="utf-8").splitlines()]
