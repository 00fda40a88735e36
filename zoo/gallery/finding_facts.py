"""Collect the stored verdicts of recipes: as effects to draw, as tables, and by the axes that their arms change."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from zoo.experiments.decisions import Kept
from zoo.experiments.experiment import Experiment, find_recipe, list_recipes
from zoo.experiments.judging import ExperimentOutcome, Finding, describe_pair, find_outcome
from zoo.experiments.recipe_tables import (
    FINDINGS,
    FIXED,
    count_held,
    describe_rates,
    format_value,
    list_arms,
    list_cells,
    list_costs,
)
from zoo.experiments.registration import describe_registration, list_shared_runs
from zoo.gallery.charts import draw_effects
from zoo.gallery.rendering import mark_safe
from zoo.probes.card import NOT_TESTED, format_level, is_guessed
from zoo.probes.outcome import ProbeOutcome
from zoo.probes.outcome_store import read_cards
from zoo.report import rate_table
from zoo.report.forest_plot import DrawnEffect

LOSSES = "validation loss, nats: arm − other (lower is better)"
ACCURACIES = "accuracy (probes): arm − other (higher is better)"
"""Titles of the panels of the forest plot."""

GUESS = "a guess"
"""Text for an architecture that reaches no level and is no better than a guess."""


def read_kept() -> Kept:
    """Read the recipes that have a stored verdict, each with its verdict."""
    return {name: (find_recipe(name)[1], outcome) for name in list_recipes() if (outcome := find_outcome(name))}


def list_effects(kept: Kept) -> list[tuple[str, list[DrawnEffect]]]:
    """List the differences of all recipes that are not withdrawn, by metric: losses first, then accuracies."""
    panels: dict[str, list[DrawnEffect]] = {LOSSES: [], ACCURACIES: []}
    for name, (recipe, outcome) in kept.items():
        for each in outcome.findings if not recipe.withdrawn else ():
            metric = each.metric or recipe.metric
            title = LOSSES if "loss" in metric else ACCURACIES if "accuracy" in metric or "scaled" in metric else None
            if title is not None and (effect := _read_effect(recipe, each, f"{name}: {describe_pair(each)}")):
                panels[title].append(effect)
    return list(panels.items())


def _read_effect(recipe: Experiment, each: Finding, label: str) -> DrawnEffect | None:
    """Return the effect of a finding, for drawing. None for a bound, and for a comparison with diverged runs."""
    if each.p is None or each.value is None or each.interval is None:
        return None
    fixed = describe_rates(recipe) == FIXED
    source = {(e.arm, e.against, e.metric): e.effect for e in recipe.expect if e.verdict}
    about = (each.arm, each.against, each.metric)
    low, high = each.interval
    interval = (low if each.bound != "at most" else -math.inf, high if each.bound != "at least" else math.inf)
    return DrawnEffect(label, each.value, interval, each.found, each.margin, source.get(about), fixed)


@dataclasses.dataclass(frozen=True)
class FindingFacts:
    """A recipe with its verdict, in the form of the gallery's pages."""

    name: str
    recipe: Experiment
    outcome: ExperimentOutcome
    others: Collection[ExperimentOutcome]
    """The kept verdicts, whose runs may be the same."""

    @property
    def axes(self) -> set[str]:
        """The axes and the model's keys that the arms set."""
        words = (each for overrides in self.recipe.arms.values() for each in overrides)
        return {re.split(r"[.=]", each.lstrip("+~").removeprefix("model."))[0] for each in words}

    @property
    def held(self) -> str:
        return count_held(self.recipe, self.outcome)

    @property
    def rates(self) -> str:
        return describe_rates(self.recipe)

    @property
    def registered(self) -> str:
        own, shared = self.outcome, list_shared_runs(self.outcome, self.others)
        return ". ".join([describe_registration(own.registration, self.recipe), *shared])

    def list_verdicts(self) -> list[dict[str, str]]:
        """List each comparison in words: arms, expected verdict, found verdict, and difference with its metric."""
        return [
            {
                "pair": describe_pair(each),
                "expected": each.expected,
                "found": each.found,
                "value": f"{format_value(each)} {(each.cost or each.metric or self.recipe.metric).replace('_', ' ')}",
            }
            for each in self.outcome.findings
        ]

    def list_tables(self) -> Iterator[tuple[str, Any, list[Any]]]:
        """Yield the tables of the page: title, header and rows."""
        own = self.outcome
        yield "Expected and found", FINDINGS, [list_cells(each, self.recipe, own.level) for each in own.findings]
        yield "Arms", *list_arms(self.recipe, self.outcome)
        if rates := rate_table.list_rows(own.searches, own.noise):
            yield "Searched learning rates", rate_table.HEADER, rates
        yield "Costs", *list_costs(self.recipe, self.outcome)

    @property
    def pictures(self) -> list[Any]:
        """SVG pictures of the effects, one for each metric. Withdrawn verdicts are included; the page marks them."""
        panels: dict[str, list[DrawnEffect]] = {}
        for each in self.outcome.findings:
            if effect := _read_effect(self.recipe, each, describe_pair(each)):
                panels.setdefault(each.metric or self.recipe.metric, []).append(effect)
        titles = {metric: f"{self.name}: {metric.replace('_', ' ')}" for metric in panels}
        return [mark_safe(draw_effects(effects, titles[metric])) for metric, effects in panels.items()]


def list_card_rows() -> tuple[list[str], list[list[str]]]:
    """List the probes with their hardest levels as a header, and for each architecture of recipes/cards a row with the
    levels that it reaches."""
    cards = {name: {each.probe: each for each in own} for name, own in read_cards().items()}
    probes = {probe: each for own in cards.values() for probe, each in own.items()}
    header = [f"{probe}, of {max(each.chances)} {each.level_is}" for probe, each in probes.items()]
    rows = [[name, *(_format_cell(own.get(probe)) for probe in probes)] for name, own in cards.items()]
    return ["architecture", *header], rows


def _format_cell(outcome: ProbeOutcome | None) -> str:
    if outcome is None:
        return NOT_TESTED
    return GUESS if is_guessed(outcome) else format_level(outcome)


def list_findings() -> list[FindingFacts]:
    """List all recipes that have a verdict, those that are withdrawn last."""
    kept = read_kept()
    others = [outcome for _, outcome in kept.values()]
    found = [FindingFacts(name, *each, others) for name, each in kept.items()]
    return sorted(found, key=lambda each: bool(each.recipe.withdrawn))
