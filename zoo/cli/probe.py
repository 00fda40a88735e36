"""`zoo probe`: what an architecture can do on synthetic tasks, and how far: its capability card."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Overrides, Target
from zoo.cli.showing import Json, Markdown, Plot, Shown, choose_format, split_words
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.probes.outcome import Outcome


MOST_JOBS = 8
"""Trainings at once where no number is given: more than a probe has to do at a time would stand idle."""


class Size(StrEnum):
    """How large the probes are."""

    card = "card"
    small = "small"


def run(
    target: Target,
    overrides: Overrides = None,
    probe: Annotated[
        str | None, typer.Option(help="Probes by name, as mqar,parity. [default: ten, the card]", metavar="NAME,NAME")
    ] = None,
    size: Annotated[Size, typer.Option(help="The size of the probes; small ones take a minute or two.")] = Size.card,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds trained at the best learning rate.")] = 3,
    lrs: Annotated[
        str | None,
        typer.Option(help="Learning rates to try. [default: half decades from 1e-4 to 3e-2]", metavar="LR,LR"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of a training. [default: the probe's own]")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once, of one thread each. [default: the cores, 8 at most]")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that results are kept in.")] = Path("probes"),
    as_json: Json = False,
    as_md: Markdown = False,
    plot: Plot = None,
) -> None:
    """Train an architecture on synthetic tasks and say how far it gets: a capability card.

    The model is brought to a small size, and keeps its kinds of layer and what the overrides set. Each probe searches
    the learning rate, then trains several seeds. A battery that was interrupted goes on where it was.
    """
    from zoo import report
    from zoo.probes.catalogue import CARD
    from zoo.report.plot import check_picture
    from zoo.report.probes import describe_card, draw_card, format_card_markdown, print_card

    targets, overrides = split_words([target, *(overrides or [])])
    shown = choose_format(as_json, False, as_md)
    names = list(CARD) if probe is None else [each.strip() for each in probe.split(",")]
    if plot is not None:
        check_picture(plot, len(targets))
    settings = {} if steps is None else {"steps": steps}
    how = {"size": size.value, "settings": settings, "seeds": seeds, "rates": read_rates(lrs)}
    found = run_battery(targets, overrides, names, jobs or min(os.cpu_count() or 1, MOST_JOBS), out, how)
    if shown is Shown.json:
        print(report.format_json(describe_card(found)))
    elif shown is Shown.md:
        print(format_card_markdown(found))
    else:
        print_card(found)
    if plot is not None:
        draw_card(found, plot)


def run_battery(
    targets: list[str], overrides: list[str], names: list[str], jobs: int, out: Path, how: dict[str, Any]
) -> list[Outcome]:
    """Run the probes on every model, after each of them was brought to the size of every probe. `how` are the options
    of `run_probe`. Raises ConfigError."""
    from zoo.probes.battery import load_small, open_pool, run_probe
    from zoo.probes.catalogue import make_probe
    from zoo.probes.store import name_folder

    for target, name in product(targets, names):
        load_small(target, make_probe(name, how["size"], how["settings"]), overrides)
    found = []
    with open_pool(jobs) as pool:
        for target, name in product(targets, names):
            place = name if how["size"] == Size.card else f"{name}-{how['size']}"
            folder = out / name_folder(target, overrides) / place
            found.append(run_probe(target, name, overrides, **how, pool=pool, folder=folder, say=print_progress))
    return found


def print_progress(line: str) -> None:
    """Say on standard error what a training reached."""
    print(line, file=sys.stderr)


def read_rates(text: str | None) -> list[float] | None:
    """Read `1e-3,1e-2` as learning rates. Raises ConfigError."""
    if text is None:
        return None
    try:
        rates = [float(each) for each in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 10 for rate in rates):
        raise ConfigError(f"lrs: cannot read {text!r} as learning rates (1e-3,3e-3)")
    return rates
