"""Run a recipe: every arm with every seed, as jobs of sweeps below one folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import ConfigError
from zoo.experiments.pricing import check_matched
from zoo.experiments.recipe import Recipe, list_overrides
from zoo.report.arms import Arm
from zoo.report.history import RunRecord, find_runs
from zoo.report.page import read_environments


def run_arms(recipe: Recipe, folder: Path, short_form: bool) -> None:
    """Train what the folder does not have yet. Raises ConfigError for a run that failed."""
    from zoo.jobs.plan import plan_launch

    check_matched(recipe)
    seeds = recipe.form(short_form).seeds
    for name in recipe.arms:
        own_folder = find_folder(folder, name)
        if len(_done(own_folder)) == seeds:
            continue
        asked = [*list_overrides(recipe, name, short_form), f"seed={','.join(map(str, range(seeds)))}"]
        asked.append(f"hydra.sweep.dir='{own_folder}'")
        with plan_launch(asked, config=recipe.config_file(), sweeps=True) as plan, plan.hold_folder() as own:
            plan.sweep(own)


def find_folder(folder: Path, arm: str) -> Path:
    """Where the runs of an arm are, below the recipe's folder."""
    return folder / re.sub(r"[^\w.-]+", "-", arm)


def collect_arms(recipe: Recipe, folder: Path, short_form: bool) -> list[Arm]:
    """The arms as they ran, by name. Raises ConfigError for runs that are not done."""
    seeds, faults, arms = recipe.form(short_form).seeds, [], []
    for name in recipe.arms:
        runs = _done(find_folder(folder, name))
        if len(runs) < seeds:
            faults.append(
                f"{find_folder(folder, name)}: has {len(runs)} runs that are done, of {seeds} (run the recipe again)"
            )
        arms.append(Arm(name, dict(sorted(runs.items()))))
    if faults:
        raise ConfigError(*faults)
    return arms


def describe_machine(arms: Sequence[Arm]) -> str:
    """Where arms ran, as the first run noted: processor, threads, and torch."""
    for each in read_environments(next(iter(arms[0].runs.values())).folder):
        return f"{each.get('processor')}; {each.get('threads')}; torch {each.get('torch')}"
    return "unknown"


def _done(folder: Path) -> dict[int, RunRecord]:
    found = find_runs(folder) if folder.is_dir() else []
    return {int(each.config.get("seed", 0)): each for each in found if each.status == "done"}
