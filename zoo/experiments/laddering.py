"""Climb the ladder of every arm of a recipe, to compare the loss of its largest size with the predicted loss."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from zoo.disk import write_text
from zoo.errors import ConfigError
from zoo.experiments.experiment import Experiment, list_overrides
from zoo.experiments.judging import Ran
from zoo.experiments.running import describe_runs, find_folder
from zoo.ladder import Ladder, climb, plan_ladder
from zoo.ladder.climbing import read_points
from zoo.ladder.ladder_tables import draw_ladder
from zoo.report.history import RunRecord

METRICS = ("held-out error", "last error", "loss of the largest", "alpha", "beta")
"""The metrics of a ladder. Three are of the largest size: the maximum relative error of the predicted losses, the
relative error at the end of its run, and the loss measured there. The others are the exponents of the law fitted to all
points."""

BOOTSTRAP = 200
"""Resamples for the exponents' intervals, which decide whether a prediction is doubtful."""


def climb_recipe(recipe: Experiment, folder: Path, short_form: bool) -> tuple[Ran, list[dict[str, Any]]]:
    """Climb a ladder for each arm and seed; sizes that are done in the folder are not trained again. Returns the
    results, and the outcomes of the ladders in the order of arms, then seeds. Raises ConfigError for a metric that no
    ladder has, and for an arm that cannot be trained."""
    if unknown := [each for each in recipe.list_metrics(short_form) if each not in METRICS]:
        raise ConfigError(f"metric: a ladder has no {unknown[0]!r} (one of: {', '.join(METRICS)})")
    form = recipe.form(short_form)
    assert form.ladder is not None
    seeds = range(form.looks[-1])
    ladders = {
        (arm, seed): plan_ladder(form.ladder.request([*list_overrides(recipe, arm, short_form), f"seed={seed}"]))
        for arm in recipe.arms
        for seed in seeds
    }
    outcomes = {
        (arm, seed): climb(ladder, find_folder(folder, arm) / str(seed), _say, BOOTSTRAP)
        for (arm, seed), ladder in ladders.items()
    }
    for each in outcomes.values():
        write_text(Path(each["folder"]) / "outcome.json", json.dumps(each) + "\n")
    values = {
        metric: {arm: {seed: measure(outcomes[arm, seed])[metric] for seed in seeds} for arm in recipe.arms}
        for metric in recipe.list_metrics(short_form)
    }
    records = [RunRecord(Path(each["folder"]) / run["run"]) for each in outcomes.values() for run in each["runs"]]
    seconds = sum(run["seconds"] for each in outcomes.values() for run in each["runs"])
    costs = {arm: count_costs(ladders[arm, 0], outcomes[arm, 0]) for arm in recipe.arms}
    return Ran(values, costs, seconds, describe_runs(records)), list(outcomes.values())


def measure(outcome: dict[str, Any]) -> dict[str, float]:
    """Compute the METRICS of a ladder from its outcome."""
    held, law = outcome["held_out"], outcome["fit"]["law"]
    errors = [abs(each["predicted"] / each["measured"] - 1) for each in held]
    found = (max(errors), errors[-1], held[-1]["measured"], law["alpha"], law["beta"])
    return dict(zip(METRICS, found, strict=True))


def count_costs(ladder: Ladder, outcome: dict[str, Any]) -> dict[str, float]:
    """Count the costs of a ladder: the parameters of its largest size; tokens, FLOPs and seconds of all sizes."""
    tokens = sum(each.lengths.updates * each.batch_tokens for each in ladder.rungs)
    flops, seconds = (sum(run[name] for run in outcome["runs"]) for name in ("flops", "seconds"))
    costs = {"params": ladder.rungs[-1].params, "tokens": tokens, "flops": flops, "seconds": seconds}
    return {name: float(value) for name, value in costs.items()}


def draw_climbed(outcomes: list[dict[str, Any]], file: Path) -> None:
    """Draw the losses of the first ladder over its tokens, and the predicted losses of the largest size."""
    first = outcomes[0]
    drawn = draw_ladder(read_points(Path(first["folder"])).rows(), first["held_out"])
    write_text(file.with_suffix(".svg"), drawn + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
