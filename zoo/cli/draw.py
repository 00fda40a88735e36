"""`zoo draw`: draw a model's architecture from its Spec, or two models side by side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.common import Overrides
from zoo.cli.options import argument, flag, option
from zoo.errors import ConfigError, name_options

if TYPE_CHECKING:
    from zoo.drawing.contents import ModelPlan
    from zoo.drawing.scene import Scene

    Drawn = Callable[[], Scene]
    """Draws a scene. Called only if a file is written."""


LOOKS, COSTS = ("paper", "cost", "strip"), ("params", "flops", "cache")


def run(
    target: str | None = argument("A model, as `zoo stats` takes it.", metavar="MODEL"),
    overrides: Overrides = None,
    look: str = option(
        "paper: as in a publication. cost: boxes coloured by their cost. strip: one column per layer, first to last.",
        default="paper",
        metavar="<paper|cost|strip>",
    ),
    by: str | None = option(
        "With --look cost: the cost that boxes are coloured by. [default: params]", metavar="<params|flops|cache>"
    ),
    context: int | None = option("Sequence length in tokens, for FLOPs and cache. [default: the model's max_seq_len]"),
    out: Path | None = option("Write a .svg, .png, .html, .pdf or .txt file. [default: the terminal]", "--out", "-o"),
    diff: bool = flag("Draw the model with and without the overrides, side by side."),
    card: bool = flag("Draw a social-preview image, 1200 × 630."),
    axis: str | None = option("Draw the choices of an axis, such as attention, in place of a model."),
    dark: bool = flag("Use a dark background. By default .svg and .html follow the reader's colour scheme."),
) -> None:
    """Draw a model's architecture: its layers as they compute, with the fields and costs of each part.

    Nothing is built: it takes under a second, without torch. Two models, or one with --diff and overrides, are drawn
    side by side, with the differences highlighted.
    """
    _refuse_unused(by, look, card, dark, out)
    if axis is not None:
        scene, lines = _draw_axis(axis, target)
    else:
        specs, plans = _plan([*([target] if target else []), *(overrides or [])], context, diff=diff)
        if len(plans) == 2:
            scene, lines = _draw_two(plans, "card" if card else look)
        else:
            scene, lines = _draw_one(plans[0], specs[0], "card" if card else look, by or "params")
    if out is None:
        return _show(lines)
    from zoo.drawing.drawn_file import write_drawing
    from zoo.drawing.text_figure import write_text

    write_drawing(scene(), out, write_text(lines), dark=dark)
    print(out)


def _refuse_unused(by: str | None, look: str, card: bool, dark: bool, out: Path | None) -> None:
    """Raise ConfigError for a file that cannot hold a drawing, for an unknown look or cost, and for options without
    effect."""
    from zoo.drawing.drawn_file import check_drawing

    for option_name, word, known in (("look", look, LOOKS), ("by", by or COSTS[0], COSTS)):
        if word not in known:
            hint = name_options(word, known)
            raise ConfigError(f"{option_name}: there is no {word!r}{hint}")
    if out is not None:
        check_drawing(out)
    if by is not None and look != "cost":
        raise ConfigError("by: only applies to the look `cost` (add --look cost)")
    if card and look != LOOKS[0]:
        raise ConfigError(f"card: has a look of its own, and --look {look} was given too (leave one out)")
    if (card or dark) and (out is None or out.suffix.lower() == ".txt"):
        found, what = ("the terminal", "card" if card else "model") if out is None else (out, out.stem)
        raise ConfigError(f"{'card' if card else 'dark'}: is of a picture, and {found} is text (--out {what}.png)")


def _plan(words: list[str], context: int | None, *, diff: bool) -> tuple[list[Any], list[ModelPlan]]:
    """Load the one or two models to draw, and plan their figures; two models are priced at the same context. Raises
    ConfigError for more models, and for --diff without overrides."""
    from zoo.cli.showing import load_specs, shorten_labels, split_words
    from zoo.costs.setup import Setup
    from zoo.drawing.contents import plan_model

    targets, overrides = split_words(words)
    if len(targets) > 2 or (diff and len(targets) > 1):
        raise ConfigError(f"draw: draws one model or compares two, found {len(targets)} (--diff: one, with overrides)")
    if diff and not overrides:
        raise ConfigError("diff: compares a model with and without overrides, and there are none (attention=mla, say)")
    titles = shorten_labels(targets)
    specs = load_specs(targets, overrides)
    changed = [" ".join([title, *overrides]) for title in titles]
    if diff:
        specs, changed = [*load_specs(targets, []), *specs], [*titles, *changed]
    if context is None and len(specs) > 1:
        context = min(spec.max_seq_len for spec in specs)
    plans = [plan_model(spec, title, Setup(context=context)) for spec, title in zip(specs, changed, strict=True)]
    return specs, plans


def _draw_two(plans: list[ModelPlan], look: str) -> tuple[Drawn, list[Any]]:
    """Draw two models side by side: the scene for a file, and lines for a terminal. Raises ConfigError for a look that
    shows one model."""
    from zoo.drawing.two_models import draw_beside, list_differences

    if look != "paper":
        raise ConfigError(
            f"{'card' if look == 'card' else 'look'}: shows one model, and two were named (leave one out)"
        )
    return partial(draw_beside, *plans), list_differences(*plans)


def _draw_one(plan: ModelPlan, spec: Any, look: str, by: str) -> tuple[Drawn, list[Any]]:
    """Draw a model: the scene for a file, and lines for a terminal."""
    from zoo.drawing.text_figure import draw_text, draw_text_strip

    if look == "strip":
        from zoo.drawing.strip import draw_strip

        return partial(draw_strip, plan), draw_text_strip(plan)
    if look == "card":
        from zoo.drawing.card_figure import draw_card

        return partial(draw_card, plan, spec), []
    from zoo.drawing.model_figure import draw_model

    if look == "paper":
        return partial(draw_model, plan), draw_text(plan)
    from zoo.drawing.cost_look import draw_areas, make_cost_look

    colours = make_cost_look(plan, by)
    areas = partial(draw_areas, plan, by, look=colours)
    return partial(draw_model, plan, colours, areas), draw_text(plan, colours)


def _draw_axis(axis: str, target: str | None) -> tuple[Drawn, list[Any]]:
    from zoo.drawing.axis_figure import draw_axis, list_choices

    if target is not None:
        raise ConfigError(f"axis: draws the choices of an axis, and {target!r} was named too (leave it out)")
    choices = list_choices(axis)
    return partial(draw_axis, axis, choices), [[(f"{each.name}  ", "title"), (each.said, "")] for each in choices]


def _show(lines: list[Any]) -> None:
    """Print lines in the terminal's colours."""
    from rich.text import Text

    from zoo.drawing.text_figure import STYLES
    from zoo.report.console import make_console

    console = make_console()
    for line in lines:
        console.print(Text.assemble(*((text, STYLES.get(color, "")) for text, color in line)), soft_wrap=True)
