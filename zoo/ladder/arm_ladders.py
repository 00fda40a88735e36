"""Climb the ladders of several arms, and follow the first arm's compute-optimal speedup over scale.

This asks whether a gain survives scale: an arm that is better at a small size may save less compute, or none, at a
larger one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from zoo.analysis.scaling import FittedLaw
from zoo.analysis.scaling.optimal_speedup import LawArm, SpeedupTrend, follow_speedup
from zoo.ladder.climbing import POINTS, Say, climb
from zoo.ladder.ladder_plan import Ladder


def climb_arms(
    ladders: Mapping[str, Ladder], folder: Path, say: Say, bootstrap: int = 1000
) -> tuple[dict[str, dict[str, Any]], dict[str, SpeedupTrend]]:
    """Climb the ladder of each arm in a folder of its own. Returns by arm its outcome and, for all but the first, its
    speedups over the first at the FLOPs of the first arm's whole runs. Raises ConfigError for a law without an
    optimum."""
    outcomes = {name: climb(each, folder / name, say, bootstrap) for name, each in ladders.items()}
    first, *others = {name: read_law_arm(folder / name, made) for name, made in outcomes.items()}.items()
    flops = sorted(set(list_whole_flops(folder / first[0]).values()))
    return outcomes, {name: follow_speedup(first[1], arm, flops) for name, arm in others}


def read_law_arm(folder: Path, outcome: Mapping[str, Any]) -> LawArm:
    """Read an arm's law, and the FLOPs that its points took for each token and parameter (their geometric mean)."""
    lines = _read_lines(folder)
    real = geometric_mean(line["flops"] / line["params"] / line["tokens"] for line in lines)
    return LawArm(FittedLaw.from_dict(outcome["fit"]), real)


def list_whole_flops(folder: Path) -> dict[int, float]:
    """List the FLOPs up to the last point of each size, by the size's parameters."""
    return {line["params"]: float(line["flops"]) for line in _read_lines(folder)}


def _read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / POINTS).read_text(encoding="utf-8").splitlines()]
