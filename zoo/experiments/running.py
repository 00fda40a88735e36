"""Train the arms of an experiment: every arm with every seed, as one sweep in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from zoo import runs
from zoo.disk import write_text
from zoo.errors import ConfigError, refuse
from zoo.experiments.experiment import Experiment, Measure
from zoo.experiments.judging import Ran
from zoo.experiments.noise_atlas import note_noise
from zoo.experiments.pricing import check_matched, price_launch
from zoo.jobs.conducting import SweepDesign, SweepObserver, conduct, look_ahead
from zoo.jobs.outlook import Outlook
from zoo.jobs.plan import LaunchPlan, plan_launch
from zoo.jobs.sweep import Sweep
from zoo.report.arms import ENDED, Arm
from zoo.report.history import RunRecord
from zoo.report.rate_table import WINDOW
from zoo.untrusted.printable import shorten


@contextmanager
def plan_arms(experiment: Experiment, folder: Path, short_form: bool = False) -> Iterator[LaunchPlan]:
    """Plan the runs of all arms, with every seed of the last look. Raises ConfigError with the faults of all arms, and
    for two arms with the same runs."""
    form = experiment.form(short_form)
    shared = [*experiment.shared, *form.overrides, f"seed={','.join(map(str, range(form.looks[-1])))}"]
    shared.append(f"hydra.sweep.dir='{folder}'")
    with plan_launch(shared, config=experiment.config_file(), sweeps=True, arms=experiment.arms) as plan:
        known: dict[str, str] = {}
        for each in plan.list_points():
            if (other := known.setdefault(each.name, each.arm)) != each.arm:
                raise ConfigError(f"arms: {each.arm} is the same run as {other} (one of them)")
        yield plan


def design_sweep(experiment: Experiment, short_form: bool = False) -> SweepDesign:
    """Return how arms are matched and tuned before their seeds run. A short form keeps the learning rates of its
    configs."""
    return SweepDesign(
        match=experiment.match,
        match_by=experiment.match_by,
        baseline=experiment.baseline,
        search_lr=bool(experiment.tune) and not short_form,
        further=experiment.tune if isinstance(experiment.tune, list) else (),
        proxy=experiment.tune.get("proxy", ()) if isinstance(experiment.tune, dict) and not short_form else (),
        expected=experiment.count_comparisons(),
    )


def plan_experiment(experiment: Experiment, folder: Path, *, measure: bool = True) -> Outlook:
    """Predict the costs of an experiment's runs, and the differences that its design can detect."""
    with plan_arms(experiment, folder) as plan:
        check_matched(experiment, price_launch(plan))
        design = replace(design_sweep(experiment), measure=measure, sigma=experiment.sigma)
        found = look_ahead(plan, design, Sweep.read(folder), only_plan=True)
        refuse(f"{name}: {'; '.join(faults)}" for name, faults in found.refused.items())
        return found


def train_arms(
    experiment: Experiment, plan: LaunchPlan, short_form: bool, observer: SweepObserver, seeds: int
) -> tuple[Ran, list[Arm]]:
    """Train the planned runs of the first `seeds` seeds, except those that have ended in the plan's folder. Return the
    collected results. Raises ConfigError for an unfinished run."""
    with (look := _take_seeds(plan, seeds)).hold_folder() as own:
        conduct(look, design_sweep(experiment, short_form), own, observer)
        found = [own / each.name for each in observer.jobs]
    return collect_arms(experiment, found, short_form)


def _take_seeds(plan: LaunchPlan, seeds: int) -> LaunchPlan:
    """Restrict a plan to the jobs of the first `seeds` seeds."""
    named = zip(plan.jobs, plan.planned, plan.arms, strict=True)
    jobs, planned, arms = zip(*(each for each in named if each[1] and each[1].settings.seed < seeds), strict=True)
    return replace(plan, jobs=list(jobs), planned=list(planned), arms=arms)


def collect_arms(experiment: Experiment, folders: Sequence[Path], short_form: bool) -> tuple[Ran, list[Arm]]:
    """Collect the results of runs, in the order of the experiment's arms. Raises ConfigError for a run that has not
    ended."""
    records = [RunRecord(each) for each in folders]
    refuse(f"{describe_unended(each)}: run it again" for each in records if each.status not in ENDED)
    by_arm: dict[str, dict[int, RunRecord]] = {name: {} for name in experiment.arms}
    for each in records:
        by_arm[each.job["label"]][int(each.config.get("seed", 0))] = each
    arms = [note_noise(Arm.of_runs(name, own)) for name, own in by_arm.items()]
    seconds = sum(float(run.outcome["seconds"] or 0) for run in records)
    costs = {each.name: each.costs for each in arms}
    values = collect_values(experiment, arms, short_form)
    searches = {each.name: each.search for each in arms if each.search}
    least = {
        metric: {each.name: each.least_noise(metric) for each in arms}
        for metric in values
        if metric not in experiment.measure
    }
    return Ran(values, costs, seconds, describe_runs(records), searches, least=least), arms


def describe_unended(run: RunRecord) -> str:
    """Describe a run that did not end successfully: arm, seed, and the reason."""
    error = run.result.get("error")
    why = f": {shorten(str(error), 200)}" if error else ""
    own = f"{run.job.get('label')}, seed {run.job.get('seed')}"
    return f"{own}: is {run.status}{why} ({run.folder})" if run.folder.is_dir() else f"{own}: has not begun"


def find_complete_seeds(experiment: Experiment, folder: Path, seeds: int) -> tuple[list[int], list[Path], list[str]]:
    """Find the complete seeds among the first `seeds`: the runs of every arm have ended. Return these seeds, the
    folders of their runs, and a description of each run that is missing."""
    jobs = {name: job for name, job in runs.read_sweep(folder).items() if "search" not in job}
    there = {(job.get("label", ""), job["seed"]): RunRecord(folder / name) for name, job in jobs.items()}
    places = [(arm, seed) for arm in experiment.arms for seed in range(seeds)]
    lost = [each for each in places if each not in there or there[each].status not in ENDED]
    complete = sorted(set(range(seeds)) - {seed for _, seed in lost})
    missing = [
        describe_unended(there[arm, seed]) if (arm, seed) in there else f"{arm}, seed {seed}: has not begun"
        for arm, seed in lost
    ]
    return complete, [there[arm, seed].folder for arm, seed in places if seed in complete], missing


def find_folder(folder: Path, arm: str) -> Path:
    """Return the folder of an arm inside the experiment's folder."""
    return folder / re.sub(r"[^\w.-]+", "-", arm)


def collect_values(
    experiment: Experiment, arms: Sequence[Arm], short_form: bool
) -> dict[str, dict[str, dict[int, float]]]:
    """Collect each metric by arm and seed. Metrics of `measure` are measured here and stored in the run's folder."""
    found = {}
    for metric in (each for each in experiment.list_metrics(short_form) if each != WINDOW):
        asked = experiment.measure.get(metric)
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
    """Describe the machine of the runs: processor, threads and torch as in the first run's record, and the range of the
    machine's load at the start of runs. A high load means that other programs slowed the runs."""
    found = [each for run in records for each in runs.read_environments(run.folder)[:1]]
    if not found:
        return "unknown"
    first, loads = found[0], [each["load"] for each in found if "load" in each]
    load = f"; load {' to '.join(dict.fromkeys(f'{each(loads):g}' for each in (min, max)))}" if loads else ""
    return f"{first.get('processor')}; {first.get('threads')}; torch {first.get('torch')}{load}"
