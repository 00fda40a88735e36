"""Train the ladders of several arms, and compute the compute-optimal speedups over the first arm by scale.

The question is whether a gain survives scale: an arm that is better at a small size may save less compute, or none, at
a larger size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from zoo.analysis.scaling import FittedLaw
from zoo.analysis.scaling.optimal_speedup import LawArm, SpeedupTrend, follow_speedup
from zoo.ladder.climbing import POINTS, Say, climb, draw_outcome
from zoo.ladder.ladder_plan import Ladder
from zoo.ladder.ladder_tables import describe_climb, draw_speedups, make_speedup_table
from zoo.report.tables import TextTable
from zoo.report.verdict_page import PAGE, write_results_page


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
