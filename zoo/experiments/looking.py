"""Run an experiment from its file to a verdict. If it has several looks, judge it after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zoo.analysis.verdict.spending import find_look_levels
from zoo.errors import ConfigError
from zoo.experiments.experiment import Experiment, find_recipe, make_experiment
from zoo.experiments.judging import ExperimentOutcome, Finding, Ran, compare_with_baseline, describe_pair, judge
from zoo.experiments.noise_atlas import note_noise
from zoo.experiments.pricing import check_matched, price_launch
from zoo.experiments.recipe_tables import FINDINGS, list_cells, list_missing, list_remarks, make_outcome_tables
from zoo.experiments.registration import describe_registration, read_registered, register
from zoo.experiments.running import collect_arms, find_complete_seeds, plan_arms, train_arms
from zoo.jobs.conducting import SweepObserver
from zoo.jobs.plan import LaunchPlan
from zoo.report.arms import Arm, group_arms
from zoo.report.history import HIGHER, collect_runs
from zoo.report.tables import TextTable
from zoo.report.verdict_page import PAGE, write_report_page, write_results_page
from zoo.report.verdict_plot import draw_report
from zoo.report.verdicts import Report
from zoo.units import say_p

FOLDER = Path("sweeps/experiments")
"""Folder of the experiments, in the working directory."""


@dataclass(frozen=True)
class JudgedExperiment:
    """An experiment's outcome, the functions that draw its results and write its page, and the report on trained
    arms."""

    outcome: ExperimentOutcome
    draw: Callable[[Path], None]
    write_page: Callable[[Path], None]
    report: Report | None = None

    def write(self, folder: Path) -> None:
        """Write the verdict, the plot and the page to a folder."""
        self.outcome.write(folder / "verdict.json")
        self.draw(folder / "verdict.png")
        self.write_page(folder / PAGE)


def experiment(
    source: str | Path | Mapping[str, Any], folder: str | Path | None = None, *, train: bool = True
) -> ExperimentOutcome:
    """Run an experiment, as `zoo experiment FILE --run` does, and return its outcome.

    `source` is a file, the name of a recipe, or a file's content as plain data: `{"arms": {"plain": "", "qk_norm":
    "model.attention.qk_norm=rmsnorm"}, "shared": "model=llama-tiny", "seeds": 5, "tune": True}`. Runs that have ended
    in the folder are not repeated; with `train=False` nothing is trained (`--report`). Writes the same files as the
    command. Raises ConfigError for a faulty experiment, before anything is written.
    """
    if isinstance(source, Mapping):
        name, made = "experiment", make_experiment(source, Path("experiment"))
    else:
        name, made = find_recipe(str(source))
    where = Path(folder) if folder is not None else FOLDER / name
    judged = judge_in_folder(name, made, where, train, SweepObserver())
    return judged.outcome


def judge_in_folder(
    name: str, experiment: Experiment, folder: Path, train: bool, observer: SweepObserver
) -> JudgedExperiment:
    """Run an experiment (or judge existing runs, without `train`). Write the verdict, plot and page to the folder."""
    if train:
        made = run_experiment(name, experiment, folder, False, observer)
    else:
        made = report_experiment(name, experiment, folder)
    made.write(folder)
    return made


def run_experiment(
    name: str, experiment: Experiment, folder: Path, short_form: bool, observer: SweepObserver
) -> JudgedExperiment:
    """Register an experiment, train the missing runs in its folder, and judge it. With several looks, further seeds are
    trained only while a comparison is inconclusive."""
    if not experiment.trains:
        return _run_task(name, experiment, folder, short_form)
    looks = experiment.form(short_form).looks
    with plan_arms(experiment, folder, short_form) as plan:
        check_matched(experiment, price_launch(plan))
        registered = register(experiment, folder, _hash_models(plan))
        for seeds, level in zip(looks, find_look_levels(tuple(looks)), strict=True):
            ran, arms = train_arms(experiment, plan, short_form, observer, seeds)
            outcome = judge(name, experiment, ran, short_form, level, registered)
            if outcome.decided or seeds == looks[-1]:
                return describe_arms(outcome, experiment, ran, arms)
            observer.say(f"{seeds} seeds: inconclusive at p < {level:.4f}; on to the next look")
    raise AssertionError("unreachable")


def _run_task(name: str, experiment: Experiment, folder: Path, short_form: bool) -> JudgedExperiment:
    """Register the experiment of a probe or a ladder, train its missing runs, and judge it."""
    if experiment.probe is not None:
        from zoo.experiments.probing import draw_probed, hash_small_models, probe_recipe, show_probed

        registered = register(experiment, folder, hash_small_models(experiment, short_form))
        ran, probed = probe_recipe(experiment, folder, short_form)
        draw, show = partial(draw_probed, ran.values, probed), partial(show_probed, ran.values, probed)
    else:
        from zoo.experiments.laddering import climb_recipe, draw_climbed, plan_ladders, show_climbed

        ladders = plan_ladders(experiment, short_form)
        registered = register(experiment, folder, {arm: each.to_dict() for arm, each in ladders.items()})
        ran, climbed = climb_recipe(experiment, ladders, folder, short_form)
        draw, show = partial(draw_climbed, climbed), partial(show_climbed, ran.speedups, climbed)
    outcome = judge(name, experiment, ran, short_form, registration=registered)
    return JudgedExperiment(outcome, draw, partial(write_task_page, outcome, experiment, show))


def _hash_models(plan: LaunchPlan) -> dict[str, str]:
    """Return a hash of each arm's config: the name of the arm's first run."""
    return {each.arm: each.name for each in reversed(plan.list_points())}


def report_experiment(name: str, experiment: Experiment, folder: Path) -> JudgedExperiment:
    """Judge the existing runs in an experiment's folder (`_collect_ended`) without training. Raises ConfigError for a
    probe or a ladder."""
    if not experiment.trains:
        raise ConfigError("report: is for arms that train on text (--run repeats no training of a probe or a ladder)")
    ran, arms, level, missing = _collect_ended(experiment, folder)
    with plan_arms(experiment, folder) as plan:
        registered = register(experiment, folder, _hash_models(plan))
    outcome = replace(judge(name, experiment, ran, False, level, registered), missing=missing)
    return describe_arms(outcome, experiment, ran, arms)


def _collect_ended(experiment: Experiment, folder: Path) -> tuple[Ran, list[Arm], float, list[str]]:
    """Collect results and arms at the last complete look. Return them with the look's significance level and a list of
    missing runs. If no look is complete, collect the complete seeds, with the level of a look at them and a description
    of each missing run. Raises ConfigError if fewer than two seeds are complete."""
    looks = experiment.form(False).looks
    whole = (each for each in reversed(looks) if not find_complete_seeds(experiment, folder, each)[2])
    complete, found, missing = find_complete_seeds(experiment, folder, next(whole, looks[0]))
    if len(complete) < 2:
        if all(each.endswith("has not begun") for each in missing):
            raise ConfigError(f"{folder}: no run has begun (--run)")
        said = f"{len(complete)} of {looks[0]} seeds are complete, and two have a spread"
        raise ConfigError(f"{folder}: {said}; {'; '.join(missing)} (--run)")
    level = find_look_levels(tuple(sorted({len(complete), *looks})))[0 if missing else looks.index(len(complete))]
    return *collect_arms(experiment, found, False), level, missing


def report_folders(
    folders: Sequence[Path], baseline: str | None = None, metric: str | None = None, margin: float | None = None
) -> tuple[Report, list[str]]:
    """Report on the arms in folders of runs. Also return lines on runs that are missing or left out.

    The arms of an experiment's folder are judged by the registered comparisons, at the level of its look. Given other
    folders, or another `metric` or `baseline`, each arm is compared with the baseline (by default the first arm).
    Raises ConfigError as `Report.make`, and if fewer than two seeds of an experiment are complete.
    """
    stated = read_registered(folders[0]) if len(folders) == 1 else None
    if stated and stated.trains and baseline in (None, stated.first_arm()) and metric in (None, stated.metric):
        experiment = stated.model_copy(update={"margin": margin or stated.margin})
        ran, arms, level, missing = _collect_ended(experiment, folders[0])
        return _compare_arms(experiment, ran, arms, False, level), missing
    arms, unfinished = group_arms(collect_runs(folders))
    metric = metric or "val_loss"
    return Report.make([*map(note_noise, arms)], baseline, metric, margin, higher=metric in HIGHER), unfinished


def describe_arms(
    outcome: ExperimentOutcome, experiment: Experiment, ran: Ran, arms: Sequence[Arm]
) -> JudgedExperiment:
    """Make the judged experiment of trained arms, with a report and the functions that draw it."""
    made = _compare_arms(experiment, ran, arms, outcome.form == "short", outcome.level)
    title = f"{outcome.recipe}: {experiment.claim}" if experiment.claim else outcome.recipe
    rows = [list_cells(each, experiment, outcome.level) for each in outcome.findings]
    stated = [TextTable("Expectations", FINDINGS, rows, (4,))]
    notes = list_notes(outcome, experiment)
    page = partial(write_report_page, made, title, notes=notes, tables=stated)
    return JudgedExperiment(outcome, partial(draw_report, made), page, made)


def _compare_arms(experiment: Experiment, ran: Ran, arms: Sequence[Arm], short_form: bool, level: float) -> Report:
    """Compare trained arms with the experiment's baseline, by the tests of its expectations."""
    higher = experiment.prefers_higher(None)
    made = Report.make(arms, experiment.first_arm(), experiment.metric, experiment.margin, level, higher)
    found = compare_with_baseline(ran, experiment, short_form, level)
    return replace(made, found=found, family="all comparisons of the experiment")


def list_notes(outcome: ExperimentOutcome, experiment: Experiment) -> list[str]:
    """List the notes of the page: missing runs, the registration and the margin."""
    notes = [*list_missing(outcome), *list_remarks(experiment, outcome)]
    notes += [] if outcome.registration is None else [describe_registration(outcome.registration) + "."]
    own = "; an expectation's own margin replaces it" if any(each.margin for each in experiment.expect) else ""
    return notes + (
        [] if experiment.margin is None else [f"Equivalent: within ±{experiment.margin:g} {experiment.metric}{own}."]
    )


def write_task_page(
    outcome: ExperimentOutcome,
    experiment: Experiment,
    show: Callable[[], tuple[Sequence[str], Sequence[str | TextTable]]],
    file: Path,
) -> None:
    """Write the page of an experiment of a probe or a ladder: the terminal's lines and tables, then the pictures and
    tables of `show`."""
    title, *results = make_outcome_tables(outcome.recipe, experiment, outcome)
    pictures, tables = show()
    better = "higher" if experiment.prefers_higher(None) else "lower"
    write_results_page(
        file,
        str(title),
        about=f"{experiment.metric}; {better} is better",
        sentences=[_describe_finding(each, experiment, outcome.level) for each in outcome.findings],
        notes=[each for each in results if isinstance(each, str)],
        pictures=pictures,
        results=[*(each for each in results if not isinstance(each, str)), *tables],
    )


def _describe_finding(each: Finding, experiment: Experiment, level: float) -> tuple[str, str, str]:
    """Return the arms of a finding, its verdict, and a sentence with the numbers."""
    _, _, found, value, *_ = list_cells(each, experiment, level)
    said = (found, value, say_p(each.deciding_p, level))
    return describe_pair(each), each.found, ", ".join(filter(None, said))
