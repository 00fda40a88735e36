"""Train the ladder of every arm of a recipe, and compare the loss of the largest size with the predicted loss."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.analysis.scaling.optimal_speedup import SpeedupTrend, read_trends
from zoo.disk import write_text
from zoo.errors import ConfigError
from zoo.experiments.experiment import Experiment, list_overrides
from zoo.experiments.judging import Ran
from zoo.experiments.running import describe_runs, find_folder
from zoo.ladder import Ladder, climb, plan_together
from zoo.ladder.climbing import describe_arms, draw_arms, draw_outcome, follow_arms
from zoo.report.history import RunRecord
from zoo.report.tables import TextTable

METRICS = ("held-out error", "last error", "loss of the largest", "loss at a quarter", "alpha", "beta")
"""The metrics of a ladder. For the largest size: maximum relative error of the predicted losses, relative error at the
end of the run, and the measured final loss. Then the final loss at the size nearest to a quarter of the largest size's
parameters. Last, the exponents of the law fitted to all points, which belong to no seed."""

BOOTSTRAP = 200
"""Number of resamples for the exponents' intervals, which decide whether a prediction is doubtful."""


def plan_ladders(recipe: Experiment, short_form: bool) -> dict[str, Ladder]:
    """Plan the ladder of each arm. Raises ConfigError for an unknown metric, and for an arm that cannot be trained."""
    if unknown := [each for each in recipe.list_metrics(short_form) if each not in METRICS]:
        raise ConfigError(f"metric: a ladder has no {unknown[0]!r} (one of: {', '.join(METRICS)})")
    form = recipe.form(short_form)
    assert form.ladder is not None
    ladder, seeds = form.ladder, form.looks[-1]
    return plan_together({arm: ladder.request(list_overrides(recipe, arm, short_form), seeds) for arm in recipe.arms})


def climb_recipe(
    recipe: Experiment, ladders: Mapping[str, Ladder], folder: Path, short_form: bool
) -> tuple[Ran, dict[str, dict[str, Any]]]:
    """Train the ladder of each arm with all seeds. Runs that are already in the folder are not repeated. Return the
    results, and the outcome of each arm's ladder."""
    ordered = dict.fromkeys([recipe.first_arm(), *ladders])  # speedups are over the first
    outcomes = {arm: climb(ladders[arm], find_folder(folder, arm), _say, BOOTSTRAP) for arm in ordered}
    for each in outcomes.values():
        write_text(Path(each["folder"]) / "outcome.json", json.dumps(each) + "\n")
    measured = {arm: measure(each) for arm, each in outcomes.items()}
    values = {
        metric: {arm: dict(enumerate(own[metric])) for arm, own in measured.items()}
        for metric in recipe.list_metrics(short_form)
    }
    records = [RunRecord(Path(each["folder"]) / run["run"]) for each in outcomes.values() for run in each["runs"]]
    seconds = sum(run["seconds"] for each in outcomes.values() for run in each["runs"])
    costs = {arm: count_costs(ladders[arm], outcomes[arm]) for arm in recipe.arms}
    speedups = {arm: asdict(each) for arm, each in _follow_arms(outcomes).items()}
    return Ran(values, costs, seconds, describe_runs(records), speedups=speedups), outcomes


def _follow_arms(outcomes: Mapping[str, dict[str, Any]]) -> dict[str, SpeedupTrend]:
    """Compute the speedups of the arms over the first one. Unknown speedups are reported and left out."""
    try:
        found = follow_arms(outcomes)
    except ConfigError as error:
        _say(f"no speedups: {error.faults[0]}")
        return {}
    for arm in [arm for arm, each in found.items() if not math.isfinite(each.slope)]:
        _say(f"{arm}: no speedup: by its law {next(iter(outcomes))} never reaches a loss as low")
        del found[arm]
    return found


def measure(outcome: dict[str, Any]) -> dict[str, list[float]]:
    """Return the METRICS of a ladder by seed, from its outcome."""
    law = outcome["fit"]["law"]
    errors = list(
        zip(
            *([abs(each["predicted"] / loss - 1) for loss in each["losses"]] for each in outcome["held_out"]),
            strict=True,
        )
    )
    ends: dict[float, list[float]] = {}
    for run in outcome["runs"]:
        ends.setdefault(run["params"], []).append(run["val_loss"])
    quarter = min(ends, key=lambda params: abs(math.log(4 * params / max(ends))))
    by_seed = ([max(each) for each in errors], [each[-1] for each in errors], ends[max(ends)], ends[quarter])
    return dict(zip(METRICS, (*by_seed, [law["alpha"]], [law["beta"]]), strict=True))


def count_costs(ladder: Ladder, outcome: dict[str, Any]) -> dict[str, float]:
    """Return the costs of a ladder: parameters of the largest size; tokens, FLOPs and seconds of all sizes."""
    tokens = sum(each.lengths.updates * each.batch_tokens for each in ladder.rungs)
    flops, seconds = (sum(run[name] for run in outcome["runs"]) for name in ("flops", "seconds"))
    costs = {"params": ladder.rungs[-1].params, "tokens": tokens, "flops": flops, "seconds": seconds}
    return {name: float(value) for name, value in costs.items()}


def draw_climbed(outcomes: Mapping[str, dict[str, Any]], file: Path) -> None:
    """Draw the losses of the first arm's ladder over tokens, and the predicted losses of the largest size."""
    write_text(file.with_suffix(".svg"), draw_outcome(next(iter(outcomes.values()))) + "\n")


def show_climbed(
    speedups: Mapping[str, Any], outcomes: Mapping[str, dict[str, Any]]
) -> tuple[list[str], list[str | TextTable]]:
    """Return the pictures and the tables of all arms' ladders."""
    return draw_arms(outcomes, read_trends(speedups)), describe_arms(outcomes)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
