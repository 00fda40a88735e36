"""Run a recipe's probe on every arm."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.experiments.arm_tasks import Probing
from zoo.experiments.experiment import Experiment, list_overrides
from zoo.experiments.judging import Ran, Values
from zoo.experiments.pricing import check_matched, price_arms, price_probed
from zoo.experiments.probe_noise import check_metrics, find_least_noise, read_metric
from zoo.experiments.running import find_folder
from zoo.probes.battery import count_searched, hash_key, load_small, open_pool, predict_seconds, run_probe
from zoo.report.price_plot import format_svg, write_figure
from zoo.report.tables import TextTable
from zoo.run.linear.base import describe_processor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zoo.probes.base import Probe
    from zoo.probes.outcome import ProbeOutcome


def probe_recipe(recipe: Experiment, folder: Path, short_form: bool) -> tuple[Ran, list[ProbeOutcome]]:
    """Run the probe on every arm. Trainings that are already in the folder are not repeated. Return the results, and
    the outcomes under the arms' names. Raises ConfigError as `run_probe` does."""
    form = recipe.form(short_form)
    assert form.probe is not None
    found = {}
    with open_pool(os.cpu_count() or 1) as pool:
        for name in recipe.arms:
            model, overrides = form.probe.split_model(list_overrides(recipe, name))
            found[name] = run_probe(
                model,
                form.probe.name,
                overrides,
                size=form.probe.size,
                settings=form.probe.settings,
                seeds=form.looks[-1],
                rates=form.probe.rates,
                pool=pool,
                folder=find_folder(folder, name),
                say=lambda line, arm=name: print(f"{arm}: {line}"),
            )
    metrics = recipe.list_metrics(short_form)
    values = {metric: {name: read_metric(each, metric) for name, each in found.items()} for metric in metrics}
    costs = {name: count_costs(form.probe, list_overrides(recipe, name), each) for name, each in found.items()}
    seconds = sum(each.seconds for each in found.values())
    named = [replace(each, model=name, overrides=()) for name, each in found.items()]
    task = form.probe.make()
    least = {
        metric: {name: find_least_noise(task, metric, own.values()) for name, own in by_arm.items()}
        for metric, by_arm in values.items()
    }
    return Ran(values, costs, seconds, describe_machine(), least=least), named


def hash_small_models(recipe: Experiment, short_form: bool) -> dict[str, str]:
    """Hash each arm's model, shrunk to the probe's size, together with the probe's settings. Raises ConfigError as
    `check_matched`, `load_small` and `check_metrics` do."""
    check_matched(recipe, price_arms(recipe))
    task, small = _load_arms(recipe, short_form)
    check_metrics(task, recipe.list_metrics(short_form))
    return {name: hash_key(spec, task) for name, spec in small.items()}


def _load_arms(recipe: Experiment, short_form: bool) -> tuple[Probe, dict[str, Any]]:
    """Return the probe, and each arm's model shrunk to the probe's size."""
    asked = recipe.form(short_form).probe
    assert asked is not None
    task, found = asked.make(), {}
    for name in recipe.arms:
        model, overrides = asked.split_model(list_overrides(recipe, name))
        found[name] = load_small(model, task, overrides)[0]
    return task, found


def plan_probe(recipe: Experiment, measure: bool = True) -> dict[str, dict[str, float]]:
    """Return the costs of each arm: the number of `trainings` (search of the rate, and seeds) and their total price.
    `params` and `cache_bytes` are those of one model. With `measure`, `seconds` in one thread are predicted from timed
    steps. Raises ConfigError as `check_matched` and `load_small` do."""
    asked, found = recipe.probe, price_arms(recipe)
    check_matched(recipe, found)
    assert asked is not None
    check_metrics(asked.make(), recipe.list_metrics())
    searched, seeds = count_searched(asked.rates), recipe.form(False).looks[-1]
    for costs in found.values():
        costs |= {each: (searched + seeds) * costs[each] for each in costs.keys() - {"params", "cache_bytes"}}
        costs["trainings"] = searched + seeds
    if measure:
        task, small = _load_arms(recipe, False)
        for arm, spec in small.items():
            found[arm]["seconds"] = predict_seconds(spec, task, searched, seeds)
    return found


def describe_machine() -> str:
    """Describe this machine: the processor and the number of CPUs."""
    processor = describe_processor()
    return f"{processor.name or processor.architecture}, {processor.isa}; {os.cpu_count()} CPUs"


def count_costs(probe: Probing, overrides: list[str], outcome: ProbeOutcome) -> dict[str, float]:
    """Return the costs of one training of a model on a probe: those of `price_probed`, and the mean seconds."""
    trainings = len(outcome.chosen) + len(outcome.seeds)
    return price_probed(probe, overrides) | {"seconds": outcome.seconds / trainings}


def draw_probed(values: Values, outcomes: list[ProbeOutcome], file: Path) -> None:
    """Draw the first figure of a probe's experiment to a file."""
    write_figure(make_figures(values, outcomes)[0], file)


def show_probed(values: Values, outcomes: list[ProbeOutcome]) -> tuple[list[str], list[str | TextTable]]:
    """Return the pictures of a probe's experiment, and the tables and notes of its card."""
    from zoo.probes.card import list_notes, list_tables

    pictures = [format_svg(each) for each in make_figures(values, outcomes)]
    return pictures, [*list_tables(outcomes), *list_notes(outcomes)]


def make_figures(values: Values, outcomes: list[ProbeOutcome]) -> list[Figure]:
    """Draw the figures of a probe's experiment: a bar per arm for the first metric (except `reach`), and the card."""
    from zoo.probes.card import make_bars, make_card

    metric, by_arm = next(iter(values.items()))
    return [*([] if metric == "reach" else [make_bars(by_arm, metric)]), make_card(outcomes)]
