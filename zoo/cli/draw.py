"""`zoo draw`: draw a model's architecture from its Spec, or two beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo.cli.common import Overrides
from zoo.cli.options import argument, flag, option
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.drawing.contents import ModelPlan
    from zoo.drawing.scene import Scene


def run(
    target: str | None = argument("A model, as `zoo stats` takes it.", metavar="MODEL"),
    overrides: Overrides = None,
    look: Literal["paper", "cost", "strip"] = option(
        "paper: as in a publication. cost: coloured by what boxes cost. strip: the pattern over depth.", default="paper"
    ),
    by: Literal["params", "flops", "cache"] | None = option("What the look `cost` is coloured by. [default: params]"),
    context: int | None = option("Tokens of a sequence, for FLOPs and cache. [default: the model's longest]"),
    out: Path | None = option("A .svg, .png, .html, .pdf or .txt file; the terminal unless given.", "--out", "-o"),
    diff: bool = flag("Draw the model with the overrides beside the one without."),
    card: bool = flag("Draw a card to share, 1200 × 630."),
    axis: str | None = option("Draw the choices of an axis, such as attention, in place of a model."),
    dark: bool = flag("Draw on a dark ground. .svg and .html follow the reader's scheme otherwise."),
) -> None:
    """Draw a model's architecture: its layers as they compute, what each part is and what it costs.

    Everything is read from the model's Spec, in under a second and without torch. Two models, or --diff with overrides,
    are drawn side by side, and what differs is lit.
    """
    from zoo.drawing.drawn_file import check_drawing, write_drawing

    if out is not None:
        check_drawing(out)
    if by is not None and look != "cost":
        raise ConfigError("by: is of the look `cost` (add --look cost)")
    if axis is not None:
        scene, lines = _draw_axis(axis, target)
    else:
        specs, plans = _plan([*([target] if target else []), *(overrides or [])], context, diff=diff)
        if card and len(plans) > 1:
            raise ConfigError("card: shows one model, two were named (leave one out)")
        if look != "paper" and len(plans) > 1:
            raise ConfigError(f"look: two models have one of their own (leave --look {look} out)")
        scene, lines = _draw(
            specs, plans, "card" if card else look, by or "params", needs_scene=out is not None and out.suffix != ".txt"
        )
    from zoo.drawing.text_figure import write_text

    if out is None:
        return _show(lines)
    write_drawing(scene, out, write_text(lines), dark=dark)
    print(out)


def _plan(words: list[str], context: int | None, *, diff: bool) -> tuple[list[Any], list[ModelPlan]]:
    """Load the models that are drawn and plan their figures: one, or two to be compared at the same context."""
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


def _draw(specs: list[Any], plans: list[ModelPlan], look: str, by: str, *, needs_scene: bool) -> tuple[Any, list[Any]]:
    """Draw one model, or two beside each other: the scene, and the lines for a terminal."""
    from zoo.drawing.text_figure import draw_text

    if len(plans) == 2:
        from zoo.drawing.two_models import draw_beside, list_differences

        return draw_beside(*plans) if needs_scene else None, list_differences(*plans)
    lines = draw_text(plans[0])
    return _draw_scene(plans[0], specs[0], look, by) if needs_scene else None, lines


def _draw_scene(plan: ModelPlan, spec: Any, look: str, by: str) -> Scene:
    if look == "strip":
        from zoo.drawing.strip import draw_strip

        return draw_strip(plan)
    if look == "card":
        from zoo.drawing.card_figure import draw_card

        return draw_card(plan, spec)
    from zoo.drawing.model_figure import draw_model

    if look == "paper":
        return draw_model(plan)
    from zoo.drawing.cost_look import draw_areas, make_cost_look

    colours = make_cost_look(plan, by)
    return draw_model(plan, colours, lambda width: draw_areas(plan, by, width, colours))


def _draw_axis(axis: str, target: str | None) -> tuple[Any, list[Any]]:
    from zoo.drawing.axis_figure import draw_axis, list_choices

    if target is not None:
        raise ConfigError(f"axis: draws the choices of an axis, and {target!r} was named too (leave it out)")
    choices = list_choices(axis)
    return draw_axis(axis, choices), [[(f"{each.name}  ", "title"), (each.said, "")] for each in choices]


def _show(lines: list[Any]) -> None:
    """Print lines in the terminal's colours."""
    from rich.text import Text

    from zoo.drawing.text_figure import STYLES
    from zoo.report.console import make_console

    console = make_console()
    for line in lines:
        console.print(Text.assemble(*((text, STYLES.get(color, "")) for text, color in line)), soft_wrap=True)
