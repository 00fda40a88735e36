"""`zoo recipes`: experiments whose expectation was written before they ran, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.showing import Json
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.experiments.judging import Outcome
    from zoo.experiments.recipe import Recipe

NARROW = 44
"""Characters of a claim on a line of the table."""


def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RECIPE...", help="Recipes, by name or file. [default: all]")
    ] = None,
    again: Annotated[
        bool, typer.Option("--run", help="Run them, and hold what comes against what is expected.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Run their short form: does it still hold?")] = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where runs go. What is there already is not run again.")
    ] = Path("sweeps/recipes"),
    save: Annotated[bool, typer.Option("--save", help="Keep the verdict of --run with the recipe.")] = False,
    as_json: Json = False,
) -> None:
    """List recipes with their claims and verdicts, show one, or run some.

    A recipe is an experiment: arms, seeds, and what is expected of them, by whom. Its verdict is kept as data, also
    where it contradicts the claim. Exits with 1 where an expectation of --run or --check is not met.
    """
    from zoo.experiments.recipe import find_recipe, list_recipes

    if again and check:
        raise ConfigError("recipes: --run and --check exclude each other (one of them)")
    if save and not again:
        raise ConfigError("recipes: --save keeps the verdict of --run (--run --save)")
    if again and not names:
        raise ConfigError("recipes: --run needs names, as all of them take hours (`zoo recipes` lists them)")
    found = dict(find_recipe(name) for name in (names or list_recipes()))
    if not (again or check):
        return _show(found, whole=bool(names), as_json=as_json)
    outcomes = [
        _run(name, recipe, out / ("short" if check else "whole"), check, save) for name, recipe in found.items()
    ]
    _print_outcomes(found, outcomes, as_json)
    if not all(each.holds for each in outcomes):
        raise typer.Exit(1)


def _run(name: str, recipe: Recipe, folder: Path, short_form: bool, save: bool) -> Outcome:
    """Run a recipe and judge it; the verdict, a page and a picture stand beside its runs."""
    from zoo.experiments.judging import find_file, judge
    from zoo.experiments.running import collect_arms, collect_values, describe_machine, run_arms
    from zoo.report.verdict_page import write_report_page
    from zoo.report.verdict_plot import draw_report
    from zoo.report.verdicts import Report

    run_arms(recipe, folder / name, short_form)
    arms = collect_arms(recipe, folder / name, short_form)
    outcome = judge(name, recipe, arms, collect_values(recipe, arms), describe_machine(arms), short_form)
    made = Report.make(arms, None, recipe.metric if recipe.metric not in recipe.measure else "val_loss")
    write_report_page(made, f"{name}: {recipe.claim}", folder / name / "report.html")
    kept = [folder / name / "verdict.json", *([find_file(name)] if save else [])]
    for file in kept:
        outcome.write(file)
        draw_report(made, file.with_suffix(".png"))
    return outcome


def _print_outcomes(recipes: dict[str, Recipe], outcomes: list[Outcome], as_json: bool) -> None:
    from dataclasses import asdict

    from zoo import report
    from zoo.experiments.tables import make_outcome_tables

    if as_json:
        print(report.format_json([asdict(each) for each in outcomes]))
        return
    for each in outcomes:
        report.print_tables(*make_outcome_tables(each.recipe, recipes[each.recipe], each))


def _show(recipes: dict[str, Recipe], whole: bool, as_json: bool) -> None:
    """List recipes in one table, or those that were named each with its figures."""
    from dataclasses import asdict

    from zoo import report
    from zoo.experiments.judging import find_outcome
    from zoo.experiments.tables import make_list, make_outcome_tables

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
        for name, each in recipes.items():
            report.print_tables(*make_outcome_tables(name, each, kept[name]))
    else:
        report.print_tables(make_list(recipes, kept))
