"""Format capability cards: the levels that models reach on probes, and their costs, as tables and a heat map."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median_low
from typing import TYPE_CHECKING, Any

from zoo.probes.outcome import ProbeOutcome, name_level
from zoo.report.price_plot import format_svg, list_colors, make_axes, write_figure
from zoo.report.tables import TextTable, format_markdown, print_tables
from zoo.report.verdict_page import write_results_page
from zoo.units import format_count, format_si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOUND = ("probe", "reaches", "steps", "accuracy (guess)", "lr", "lr window")
"""Columns of results: the hardest level with 90 % accuracy, steps to 90 %, accuracy at the hardest trained level,
chosen learning rate, and the width of the window of good learning rates."""

LEGEND = (
    "reaches: the hardest level up to which at least 90 % are right, the median of the seeds.",
    "steps: updates to 90 % accuracy on the training distribution; > N: not reached within the N updates (censored).",
    "accuracy: at the hardest level of training, ± one standard deviation over seeds.",
    "guess: accuracy, at that level, of guessing among the answers possible for the sequence.",
    "no better than a guess: no level is reached, and (accuracy − guess) / (1 − guess) is below 0.1 at every level.",
    "lr window: decades of learning rate with 90 % of the best accuracy; ≥ if an end was not reached, - if even the "
    "best is no better than a guess.",
    "state: keys and values, or recurrent states, of one sequence in float32. FLOPs: forward, per token.",
)
"""Explanations of a card's columns."""

NOT_TESTED = "not tested"
"""Text of a cell whose probe was not run on the model."""

COSTS = ("state", "params", "FLOPs")
"""Columns of costs."""


def list_found(outcome: ProbeOutcome) -> list[str]:
    rate = f"{outcome.lr:.1e}".replace("e-0", "e-") + ("!" if outcome.on_edge else "")
    figures = (format_reach, format_steps, format_accuracy)
    return [outcome.probe, *(form(outcome) for form in figures), rate, format_window(outcome)]


def list_costs(outcome: ProbeOutcome) -> list[str]:
    return [format_si(outcome.state_bytes, "B"), format_count(outcome.params), format_si(outcome.flops)]


def group_by_model(outcomes: Sequence[ProbeOutcome]) -> dict[str, list[ProbeOutcome]]:
    """Group outcomes by model name, in order of first appearance."""
    found: dict[str, list[ProbeOutcome]] = {}
    for each in outcomes:
        found.setdefault(name_model(each), []).append(each)
    return found


def name_model(outcome: ProbeOutcome) -> str:
    return " ".join([outcome.model, *outcome.overrides])


def format_reach(outcome: ProbeOutcome) -> str:
    """Format the level reached and the hardest level (`8 of 16 keys`), with bits per parameter if counted."""
    text = f"{format_level(outcome)} of {max(outcome.chances)} {outcome.level_is}"
    if is_guessed(outcome):
        return f"{text}, no better than a guess"
    if "bits_per_parameter" in outcome.seeds[0].levels[max(outcome.chances)]:
        bits, _ = outcome.average(max(outcome.chances), "bits_per_parameter")
        return f"{text}, {bits:.3f} bits per parameter"
    return text


def format_level(outcome: ProbeOutcome) -> str:
    """Format the median over seeds of the level reached, and the range if seeds differ."""
    low, high = min(outcome.reaches), max(outcome.reaches)
    reached = name_level(outcome, outcome.reach)
    return reached if low == high else f"{reached} ({name_level(outcome, low)} to {high})"


def format_steps(outcome: ProbeOutcome) -> str:
    """Format the median and range over seeds of the steps to 90 % accuracy; `> 600` if 600 were not enough."""
    if not (steps := outcome.steps_to_solve):
        return "-"
    low, middle, high = (
        f"> {outcome.settings['steps']}" if math.isinf(each) else f"{each:.0f}"
        for each in (min(steps), median_low(steps), max(steps))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def format_accuracy(outcome: ProbeOutcome) -> str:
    """Format the mean accuracy at the hardest trained level, ± its standard deviation over seeds, and the accuracy of
    an informed guess."""
    level = max(outcome.trained)
    middle, deviation = outcome.accuracy(level)
    spread = "" if deviation is None else f" ± {deviation:.3f}"
    return f"{middle:.3f}{spread} ({outcome.baselines[level]:.2g})"


def format_window(outcome: ProbeOutcome) -> str:
    """Format the width of the window of good learning rates in decades, with `≥` if an end was not reached."""
    window = outcome.window
    if window is None:
        return "-"
    return f"{'≥ ' if window.open else ''}{window.width:.2f}"


def list_notes(outcomes: Sequence[ProbeOutcome]) -> list[str]:
    """List explanations of the columns, and notes on single outcomes."""
    notes = [*LEGEND]
    notes += ["!: the chosen learning rate is the lowest or highest that was tried."] * any(e.on_edge for e in outcomes)
    return notes + list(dict.fromkeys(f"{each.probe}: {note}." for each in outcomes for note in each.notes))


def format_card_markdown(outcomes: Sequence[ProbeOutcome]) -> str:
    """Format a card as Markdown: a row for each probe and model, grouped by probe, then notes."""
    probes = list(dict.fromkeys(each.probe for each in outcomes))
    rows = [
        [name_model(each), *list_found(each), *list_costs(each)]
        for each in sorted(outcomes, key=lambda outcome: probes.index(outcome.probe))
    ]
    table = format_markdown(("model", *FOUND, *COSTS), rows, range(3, 10))
    return table + "\n\n" + "\n".join(f"- {note}" for note in list_notes(outcomes))


def list_tables(outcomes: Sequence[ProbeOutcome]) -> list[TextTable]:
    """List two tables for each model: results and costs."""
    made = []
    for model, own in group_by_model(outcomes).items():
        costs = [[each.probe, *list_costs(each)] for each in own]
        made.append(TextTable(model, FOUND, list(map(list_found, own)), range(2, 6)))
        made.append(TextTable("", ("probe", *COSTS), costs, range(1, 4)))
    return made


def print_card(outcomes: Sequence[ProbeOutcome]) -> None:
    """Print a card's tables and notes."""
    print_tables(*list_tables(outcomes))
    print("\n".join(textwrap.fill(note, 112, subsequent_indent="  ") for note in list_notes(outcomes)))


def write_card_page(outcomes: Sequence[ProbeOutcome], file: Path) -> None:
    """Write a card as an HTML page. Raises ConfigError if the file cannot be written."""
    results = [*list_tables(outcomes), *list_notes(outcomes)]
    write_results_page(file, "Capability card", pictures=[format_svg(make_card(outcomes))], results=results)


def draw_card(outcomes: Sequence[ProbeOutcome], file: Path) -> None:
    """Draw a card into a .png or .svg file. Raises ConfigError if the file cannot be written."""
    write_figure(make_card(outcomes), file)


def make_card(outcomes: Sequence[ProbeOutcome]) -> Figure:
    """Draw a card as a heat map, with a row for each model and a column for each probe.

    A cell shows the level reached and its range over seeds; the colour is the fraction of levels passed. A probe that
    was not run on a model is hatched.
    """
    models = group_by_model(outcomes)
    probes = {each.probe: each for each in outcomes}
    names = ["\n".join(textwrap.wrap(model, 32, break_on_hyphens=False)) for model in models]
    lines = sum(max(2, name.count("\n") + 1) for name in names)
    axes = make_axes(max(5.2, 2.6 + 0.85 * len(probes)), 1.2 + 0.19 * lines)
    for row, own in enumerate(models.values()):
        found = {each.probe: each for each in own}
        for column, probe in enumerate(probes):
            draw_cell(axes, column, row, found.get(probe))
    axes.set_xlim(-0.5, len(probes) - 0.5)
    axes.set_ylim(len(models) - 0.5, -0.5)  # the first model on top
    axes.xaxis.tick_top()
    levels = (textwrap.fill(f"of {max(own.chances)} {own.level_is}", 14) for own in probes.values())
    axes.set_xticks(range(len(probes)), [f"{name}\n{level}" for name, level in zip(probes, levels, strict=True)])
    axes.set_yticks(range(len(models)), names)
    axes.tick_params("both", length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    told = "hardest level with 90 % right: median and range over seeds\n"
    axes.figure.supxlabel(f"{told}darker: a larger share of the levels; white: no better than a guess", fontsize=8)
    return axes.figure


def draw_cell(axes: Any, column: int, row: int, outcome: ProbeOutcome | None) -> None:
    """Draw a cell of a card. An outcome of None means that the probe was not run."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    corner, size = (column - 0.48, row - 0.46), (0.96, 0.92)
    if outcome is None:
        axes.add_patch(Rectangle(corner, *size, hatch="////", facecolor="white", edgecolor="0.8"))
        text, color = NOT_TESTED, "0.35"
    else:
        share = sum(level <= outcome.reach for level in outcome.chances) / len(outcome.chances)
        fill = "white" if is_guessed(outcome) else colormaps["Blues"](0.08 + 0.77 * share)
        axes.add_patch(Rectangle(corner, *size, facecolor=fill, edgecolor="0.85", linewidth=0.6))
        text, color = format_level(outcome).replace(" (", "\n").rstrip(")"), "white" if share > 0.6 else "black"
    axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


def is_guessed(outcome: ProbeOutcome) -> bool:
    """Whether no level is reached and the accuracy at every level is no better than an informed guess."""
    return outcome.reach < min(outcome.chances) and not outcome.learned


def make_bars(values: Mapping[str, Mapping[int, float]], metric: str) -> Figure:
    """Draw a metric of several arms: a bar for each arm's mean, a point for each seed. `values` are by arm, then
    seed."""
    axes = make_axes(8, 0.9 + 0.4 * len(values))
    every = [each for seeds in values.values() for each in seeds.values()]
    most = max(every)
    for at, (seeds, color) in enumerate(zip(values.values(), list_colors(len(values)), strict=True)):
        axes.barh(at, mean(seeds.values()), 0.6, color=color)
        axes.plot([*seeds.values()], [at] * len(seeds), "o", color="black", markersize=3)
        axes.text(max(seeds.values()) + 0.015 * most, at, f"{mean(seeds.values()):.3f}", va="center", fontsize=8)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)  # the first arm on top
    axes.set_xlim(min(0.0, *every) - (0.02 * most if min(every) < 0 else 0), 1.12 * most)
    axes.set_xlabel(f"mean {metric} (points: single seeds)")
    return axes.figure
