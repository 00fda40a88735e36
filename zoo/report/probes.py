"""Capability cards: how far models get on probes, beside what they cost, as tables and as one picture of bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.report.units import format_count, format_si

if TYPE_CHECKING:
    from zoo.probes.outcome import Outcome

HEADER = ("probe", "reaches", "of", "accuracy", "lr", "lr window", "state", "params", "FLOPs")
"""Columns of a card; `reaches` is the hardest level at 90 %, `accuracy` that of the hardest level which was trained."""

RIGHT = range(3, 9)


def list_card_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """List a line for each probe and model, the models of a probe together. With several models each is named."""
    several = len({name_model(each) for each in outcomes}) > 1
    order = list(dict.fromkeys(each.probe for each in outcomes))
    rows = []
    for each in sorted(outcomes, key=lambda outcome: order.index(outcome.probe)):
        row = [each.probe, format_reach(each), f"{max(each.chances)} {each.level_is}", format_accuracy(each)]
        row += [f"{each.lr:.1e}" + ("!" if each.on_edge else ""), format_window(each)]
        row += [format_si(each.state_bytes, "B"), format_count(each.params), format_si(each.flops)]
        rows.append([name_model(each), *row] if several else row)
    return rows


def name_header(outcomes: Sequence[Outcome]) -> tuple[tuple[str, ...], list[int]]:
    """Name the columns, and those to align right."""
    several = len({name_model(each) for each in outcomes}) > 1
    return (("model", *HEADER), [each + 1 for each in RIGHT]) if several else (HEADER, list(RIGHT))


def name_model(outcome: Outcome) -> str:
    return " ".join([outcome.model, *outcome.overrides])


def format_reach(outcome: Outcome) -> str:
    """Format the median of what the seeds reached, the range where they differ, and bits where these are counted."""
    low, high = min(outcome.reaches), max(outcome.reaches)
    text = f"{outcome.reach}" if low == high else f"{outcome.reach} ({low} to {high})"
    if "bits_per_parameter" in outcome.seeds[0].levels[max(outcome.chances)]:
        bits, _ = outcome.average(max(outcome.chances), "bits_per_parameter")
        return f"{text}; {bits:.3f} bits a parameter"
    return text


def format_accuracy(outcome: Outcome) -> str:
    """Format the accuracy at the hardest level that was trained, ± over seeds, and what a guess would have."""
    level = max(outcome.trained)
    middle, deviation = outcome.accuracy(level)
    spread = "" if deviation is None else f" ± {deviation:.3f}"
    return f"{middle:.3f}{spread} ({outcome.chances[level]:.2g})"


def format_window(outcome: Outcome) -> str:
    """Format the width of the window of learning rates: `≥` where an end was not met."""
    window = outcome.window
    if window is None:
        return "-"
    return f"{'≥ ' if window.open_low or window.open_high else ''}{window.decades:.2f}"


def list_notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Explain the columns, and say what a reader should know of single outcomes."""
    notes = [
        "reaches: the hardest level up to which at least 90 % are right, median of the seeds. accuracy: at the hardest",
        "level of training, ± one deviation over seeds (a guess). lr window: decades with 90 % of the best accuracy.",
        "state: keys and values or recurrent states of one row in float32. FLOPs: of a token, forward.",
    ]
    notes += ["!: the best learning rate is the lowest or highest that was tried."] * any(e.on_edge for e in outcomes)
    return notes + list(dict.fromkeys(f"{each.probe}: {note}." for each in outcomes for note in each.notes))


def format_card_markdown(outcomes: Sequence[Outcome]) -> str:
    """Format a card as Markdown: the table, and notes."""
    from zoo.report.tables import format_markdown

    header, right = name_header(outcomes)
    return format_markdown(header, list_card_rows(outcomes), right) + "\n\n" + "\n".join(list_notes(outcomes))


def print_card(outcomes: Sequence[Outcome]) -> None:
    """Print a card as a table with notes."""
    from zoo.report.tables import make_table, print_tables

    header, right = name_header(outcomes)
    named = [] if header[0] == "model" else [name_model(outcomes[0])]
    print_tables(make_table("".join(named), header, list_card_rows(outcomes), right=right))
    print("\n".join(list_notes(outcomes)))


def draw_card(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw a card into a .png or .svg file: a group of bars for each probe, a bar for each model.

    A bar is the share of levels reached, its mark the range over seeds, and its text the level. Raises ConfigError if
    the file cannot be written.
    """
    from matplotlib.figure import Figure

    from zoo.report.plot import list_colors, write_figure

    models = list(dict.fromkeys(name_model(each) for each in outcomes))
    probes = list(dict.fromkeys(each.probe for each in outcomes))
    height = 0.8 / len(models)
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(probes) * max(1.4, len(models))), dpi=120, layout="constrained")
    axes = figure.subplots()
    for number, (model, color) in enumerate(zip(models, list_colors(len(models)), strict=True)):
        own = [each for each in outcomes if name_model(each) == model]
        at = [probes.index(each.probe) + (number - (len(models) - 1) / 2) * height for each in own]
        axes.barh(at, [share_reached(each, each.reach) for each in own], height, color=color, label=model)
        for y, each in zip(at, own, strict=True):
            ends = [share_reached(each, reach) for reach in (min(each.reaches), max(each.reaches))]
            axes.plot(ends, [y, y], color="black", linewidth=1.2)
            text = f"{each.reach} {each.level_is}" if each.reach else "none"
            axes.text(max(ends) + 0.01, y, text, va="center", fontsize=7)
    axes.set_yticks(range(len(probes)), probes)
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.invert_yaxis()
    axes.set_xlabel("levels reached with at least 90 % right; line: range over seeds")
    axes.spines[["top", "right"]].set_visible(False)
    if len(models) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    else:
        axes.set_title(models[0])
    write_figure(figure, file)


def share_reached(outcome: Outcome, reach: int) -> float:
    """The share of a probe's levels up to one that was reached."""
    return sum(level <= reach for level in outcome.chances) / len(outcome.chances)


def describe_card(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The outcomes as plain data."""
    return [each.to_dict() for each in outcomes]
