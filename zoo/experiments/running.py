"""Train the arms of a recipe: every arm with every seed, as jobs of sweeps below one folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo import runs
from zoo.disk import write_text
from zoo.errors import refuse
from zoo.experiments.judging import Ran
from zoo.experiments.pricing import check_matched
from zoo.experiments.recipe import Measure, Recipe, list_overrides
from zoo.jobs.forecast import Forecaster
from zoo.jobs.plan import plan_launch
from zoo.jobs.sweep import Sweep, drop_duplicates
from zoo.report.arms import Arm
from zoo.report.history import RunRecord


def train_recipe(recipe: Recipe, folder: Path, short_form: bool) -> tuple[Ran, list[Arm]]:
    """Train the runs that are missing in the folder; collect the results. Raises ConfigError for an unfinished run."""
    arms = collect_arms(run_arms(recipe, folder, short_form))
    seconds = sum(float(run.outcome["seconds"] or 0) for each in arms for run in each.runs.values())
    costs = {each.name: each.costs for each in arms}
    records = [run for arm in arms for run in arm.runs.values()]
    return Ran(collect_values(recipe, arms, short_form), costs, seconds, describe_runs(records)), arms


def run_arms(recipe: Recipe, folder: Path, short_form: bool) -> dict[str, list[Path]]:
    """Train the runs that are missing in the folder; return the folders of each arm's runs. A folder is named by a hash
    of its run's config, so that runs of an older version of the recipe are not returned."""
    check_matched(recipe)
    seeds, found = recipe.form(short_form).seeds, {}
    for name in recipe.arms:
        own_folder = find_folder(folder, name)
        asked = [*list_overrides(recipe, name, short_form), f"seed={','.join(map(str, range(seeds)))}"]
        asked.append(f"hydra.sweep.dir='{own_folder}'")
        with plan_launch(asked, config=recipe.config_file(), sweeps=True) as plan, plan.hold_folder() as own:
            jobs, _ = drop_duplicates(plan.list_points())
            sweep = Sweep.read(own)
            missing = sweep.find_missing(jobs)
            sweep.begin(plan.overrides)
            forecaster = Forecaster(measure=False)
            sweep.add(jobs, {each.name: forecaster.forecast(each.planned).to_dict(each.planned) for each in jobs})
            if missing:
                plan.launch(own, missing)
            found[name] = [own / each.name for each in jobs]
    return found


def find_folder(folder: Path, arm: str) -> Path:
    """Give the folder of an arm's runs, below the recipe's folder."""
    return folder / re.sub(r"[^\w.-]+", "-", arm)


def collect_arms(folders: Mapping[str, Sequence[Path]]) -> list[Arm]:
    """Read the arms from the folders of their runs. Raises ConfigError for runs that are not done."""
    arms, faults = [], []
    for name, own in folders.items():
        runs = [RunRecord(each) for each in own]
        faults += [f"{each.folder}: is {each.status} (run the recipe again)" for each in runs if each.status != "done"]
        arms.append(Arm(name, {int(each.config.get("seed", 0)): each for each in runs if each.status == "done"}))
    refuse(faults)
    return arms


def collect_values(recipe: Recipe, arms: Sequence[Arm], short_form: bool) -> dict[str, dict[str, dict[int, float]]]:
    """Collect each metric by arm and seed. Metrics of `recipe.measure` are measured here and stored in the run's
    folder."""
    found = {}
    for metric in recipe.list_metrics(short_form):
        asked = recipe.measure.get(metric)
        found[metric] = {
            arm.name: arm.values(metric)
            if asked is None
            else {seed: _measure(run.folder, metric, asked) for seed, run in arm.runs.items()}
            for arm in arms
        }
    return found


def _measure(folder: Path, name: str, asked: Measure) -> float:
    from zoo.training.evaluate import evaluate

    file = folder / runs.MEASURED
    known = runs.read_result(file)
    if name not in known:
        made = evaluate(folder, overrides=asked.overrides, context=asked.context, stride=asked.stride)
        known[name] = made["results"][0]["loss"]
        write_text(file, json.dumps(known, indent=1) + "\n")
    return known[name]


def describe_runs(records: Sequence[RunRecord]) -> str:
    """Describe where runs ran: processor, threads and torch, as the first run noted them, and the range of the
    machine's load when runs began. A high load means that other programs slowed the runs."""
    found = [each for run in records for each in runs.read_environments(run.folder)[:1]]
    if not found:
        return "unknown"
    first, loads = found[0], [each["load"] for each in found if "load" in each]
    load = f"; load {min(loads):g} to {max(loads):g}" if loads else ""
    return f"{first.get('processor')}; {first.get('threads')}; torch {first.get('torch')}{load}"
