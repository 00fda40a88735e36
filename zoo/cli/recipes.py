"""`zoo recipes`: list and run experiments with preregistered expectations, and show their verdicts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zoo import report
from zoo.cli.options import argument, flag, option
from zoo.cli.showing import Json
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.experiments.experiment import Experiment
    from zoo.experiments.judging import ExperimentOutcome


def run(
    names: list[str] | None = argument("Recipes, by name or file. [default: all]", metavar="RECIPE..."),
    again: bool = flag("Run the recipes, and compare the results with the expectations.", "--run"),
    check: bool = flag("Run the recipes' short versions, and check whether their verdicts hold."),
    out: Path = option(
        "The folder of the runs; finished ones are not run again.", default=Path("sweeps/recipes"), metavar="FOLDER"
    ),
    save: bool = flag("Store the verdict of --run with the recipe."),
    as_json: Json = False,
) -> None:
    """List recipes with their claims and verdicts, show one, or run some.

    A recipe is an experiment: arms, seeds, and the expected results with their source. Its verdict is stored, even if
    it contradicts the claim. --run and --check test whether a stored verdict holds again, so they exit with 1 if an
    expectation is not met (`zoo experiment` exits with 0).
    """
    from zoo.experiments.experiment import find_recipe, list_recipes

    if again and check:
        raise ConfigError("recipes: --run and --check exclude each other (one of them)")
    if save and not again:
        raise ConfigError("recipes: --save keeps the verdict of --run (--run --save)")
    if again and not names:
        raise ConfigError("recipes: --run needs names, as all of them take hours (`zoo recipes` lists them)")
    found = dict(find_recipe(name) for name in (names or list_recipes()))
    if save and (others := [name for name in names or () if name not in list_recipes()]):
        raise ConfigError(f"recipes: --save is for packaged recipes, found {others[0]} (leave it out)")
    if not (again or check):
        return _show(found, whole=bool(names), as_json=as_json)
    outcomes = [
        _run(name, recipe, out / ("short" if check else "whole"), check, save) for name, recipe in found.items()
    ]
    _print_outcomes(found, outcomes, as_json)
    if not all(each.holds for each in outcomes):
        raise typer.Exit(1)


def _run(name: str, recipe: Experiment, folder: Path, short_form: bool, save: bool) -> ExperimentOutcome:
    """Run a recipe and judge it. Writes the verdict, a plot and a page next to its runs; with `save`, verdict and plot
    also to the packaged verdicts."""
    from zoo.cli.observing import PrintingObserver, naming_interrupts
    from zoo.experiments.judging import find_file
    from zoo.experiments.looking import run_experiment

    own = folder / name
    with naming_interrupts(name, own):
        made = run_experiment(name, recipe, own, short_form, PrintingObserver())
    made.write(own)
    if save:
        made.outcome.write(file := find_file(name))
        made.draw(file.with_suffix(".png"))
    return made.outcome


def _print_outcomes(recipes: dict[str, Experiment], outcomes: list[ExperimentOutcome], as_json: bool) -> None:
    from zoo.experiments.recipe_tables import make_outcome_tables

    if as_json:
        print(report.format_json([asdict(each) for each in outcomes]))
        return
    for each in outcomes:
        report.print_tables(*make_outcome_tables(each.recipe, recipes[each.recipe], each))


def _show(recipes: dict[str, Experiment], whole: bool, as_json: bool) -> None:
    """Print all recipes in one table, or with `whole` each recipe with its figures."""
    from zoo.experiments.experiment import list_recipes
    from zoo.experiments.judging import find_outcome
    from zoo.experiments.recipe_tables import list_machines, make_list, make_outcome_tables

    kept = {name: find_outcome(name) for name in recipes}
    if as_json:
        rows = [
            {
                "recipe": name,
                **each.model_dump(mode="json"),
                "outcome": None if (had := kept[name]) is None else asdict(had),
            }
            for name, each in recipes.items()
        ]
        print(report.format_json(rows))
    elif whole:
        others = [outcome for each in list_recipes() if (outcome := find_outcome(each))]
        for name, each in recipes.items():
            report.print_tables(*make_outcome_tables(name, each, kept[name], others))
    else:
        report.print_tables(
            make_list(recipes, kept), *list_machines(kept), "zoo recipes NAME shows one with its figures"
        )
