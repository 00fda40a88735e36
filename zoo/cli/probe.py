"""`zoo probe`: train an architecture on synthetic tasks and report the levels it reaches: its capability card."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo import report
from zoo.cli.common import Overrides, Target, say
from zoo.cli.options import flag, option
from zoo.cli.outlook import note_crowding
from zoo.cli.showing import Json, Markdown, OutputOptions, Shown, split_words
from zoo.errors import ConfigError, refuse
from zoo.report.price_plot import check_picture
from zoo.units import format_seconds

if TYPE_CHECKING:
    from zoo.probes.outcome import ProbeOutcome


PLANNED = ("model", "probe", "trainings", "seconds")
"""Figures of a plan. Tables show `trainings` as training runs, and the seconds with their unit, as `time`."""

MOST_JOBS = 8
"""The maximum default number of parallel trainings: a probe seldom has more to run at a time."""


def run(
    target: Target,
    overrides: Overrides = None,
    multirun: bool = flag("Run one model for each combination of key=a,b,c.", "--multirun", "-m"),
    probe: str | None = option("Probes by name: mqar,parity. [default: the standard ten]", metavar="NAME,NAME"),
    size: Literal["card", "small", "paper"] = option(
        "Size of the probes: card (minutes each), small (a minute or two) or paper (as published: hours on a GPU).",
        default="card",
    ),
    seeds: int = option("Seeds trained at the chosen learning rate.", default=3, min=1),
    lrs: str | None = option("Learning rates to try. [default: 1e-4, 3.2e-4, …, 3.2e-2]", metavar="LR,LR"),
    plan: bool = flag("Predict the time of each probe from timed updates, and train nothing."),
    controls: bool = flag("Also run controls: a model that must solve the probe, and one that cannot."),
    steps: int | None = option("Updates per training run. [default: the probe's own]", min=1),
    jobs: int | None = option(
        "Training runs at a time, one thread each. [default: the number of cores, 8 at most]", min=1
    ),
    out: Path = option("The folder for results.", "--out", "-o", default=Path("probes")),
    as_json: Json = False,
    as_md: Markdown = False,
    plot: Path | None = option("Plot the results to a .png or .svg file."),
) -> None:
    """Train an architecture on synthetic tasks and report the level that it reaches: a capability card.

    The model is scaled down, but keeps its kinds of layer and what the overrides set. Each probe tunes the
    learning rate, then trains several seeds. The same command resumes interrupted probes. `zoo explain probe` lists the
    probes and says how to read a card.
    """
    from zoo.probes.all_probes import CARD
    from zoo.probes.card import draw_card, format_card_markdown, print_card, write_card_page

    targets, overrides = split_words([target, *(overrides or [])])
    shown = OutputOptions(as_json=as_json, as_md=as_md).shown
    names = list(CARD) if probe is None else [each.strip() for each in probe.split(",")]
    models = list_variants(targets, overrides) if multirun else [(each, overrides) for each in targets]
    if plot is not None:
        check_picture(plot, len(models))
    settings = {} if steps is None else {"steps": steps}
    how = {"size": size, "settings": settings, "seeds": seeds, "rates": read_rates(lrs)}
    jobs = jobs or min(os.cpu_count() or 1, MOST_JOBS)
    if plan:
        return plan_battery(models, names, jobs, how, as_json)
    found = run_battery(models, names, jobs, out, how, controls)
    if shown is Shown.json:
        print(report.format_json([each.to_dict() for each in found]))
    elif shown is Shown.md:
        print(format_card_markdown(found))
    else:
        print_card(found)
    if plot is not None:
        draw_card(found, plot)
    write_card_page(found, page := out / "report.html")
    say(f"the card as a page: {page}")


def list_variants(targets: list[str], overrides: list[str]) -> list[tuple[str, list[str]]]:
    """List each model with the overrides of each combination of swept values. Raises ConfigError with the faults of all
    combinations."""
    from zoo.compose.sweep_specs import read_points

    points = [(target, point) for target in targets for point in read_points(target, overrides)]
    refuse(dict.fromkeys(fault for _, point in points for fault in point.faults))
    return [(target, point.overrides) for target, point in points]


def plan_battery(
    models: list[tuple[str, list[str]]], names: list[str], jobs: int, how: dict[str, Any], as_json: bool
) -> None:
    """Print the trainings of each probe on each model, and their seconds predicted from timed updates. `how` are the
    options of `run_probe`. Raises ConfigError as `load_small` and `make_probe` do."""
    from zoo.probes.all_probes import make_probe
    from zoo.probes.battery import count_searched, load_small, predict_seconds

    searched, rows, shapes = count_searched(how["rates"]), [], []
    for (target, overrides), name in product(models, names):
        probe = make_probe(name, how["size"], how["settings"])
        spec, _ = load_small(target, probe, overrides)
        shapes.append(f"{len(spec.pattern)} layer{'s' * (len(spec.pattern) > 1)} of {spec.d_model} channels")
        seconds = predict_seconds(spec, probe, searched, how["seeds"])
        rows.append((" ".join([target, *overrides]), name, searched + how["seeds"], seconds))
    if as_json:
        print(report.format_json([dict(zip(PLANNED, row, strict=True)) for row in rows]))
        return
    cells = [[*map(str, row[:3]), format_seconds(row[3])] for row in rows]
    report.print_tables(report.make_table("", (*PLANNED[:2], "training runs", "time"), cells, right=(2, 3)))
    takes = format_seconds(sum(row[3] for row in rows) / jobs)
    said = (
        f"about {takes} from the beginning, {jobs} at a time: from three timed updates each; controls are not counted"
    )
    print(said, *note_crowding(), sep="\n")
    print(f"trained: {' or '.join(dict.fromkeys(shapes))}")


def run_battery(
    models: list[tuple[str, list[str]]], names: list[str], jobs: int, out: Path, how: dict[str, Any], controls: bool
) -> list[ProbeOutcome]:
    """Run the probes on every model under its overrides. Every model is first scaled to every probe, so that faults are
    found before any training. `how` are the options of `run_probe`. With `controls` the outcomes of each probe's
    controls come first. Raises ConfigError as `load_small` and `make_probe` do."""
    from zoo.probes.all_probes import make_probe
    from zoo.probes.battery import load_small, open_pool, run_probe
    from zoo.probes.control_pair import run_controls
    from zoo.probes.outcome_store import name_folder

    for (target, overrides), name in product(models, names):
        load_small(target, make_probe(name, how["size"], how["settings"]), overrides)
    found, own = [], {}
    with open_pool(jobs) as pool:
        for name in names if controls else ():
            asked = {"size": how["size"], "settings": how["settings"]}
            pair = run_controls(name, **asked, pool=pool, folder=out, say=say)
            found += [pair.positive, pair.negative]
            if pair.extended:
                own[name] = pair.positive.settings
        for (target, overrides), name in product(models, names):
            place = name if how["size"] == "card" else f"{name}-{how['size']}"
            place += f"-to-{max(own[name]['levels'])}" if name in own else ""
            folder = out / name_folder(target, overrides) / place
            asked = {**how, "settings": own.get(name, how["settings"])}
            found.append(run_probe(target, name, overrides, **asked, pool=pool, folder=folder, say=say))
    return found


def read_rates(text: str | None) -> list[float] | None:
    """Read `1e-3,1e-2` as learning rates. Raises ConfigError unless all are between 0 and 10."""
    if text is None:
        return None
    try:
        rates = [float(each) for each in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < 10 for rate in rates):
        raise ConfigError(f"lrs: cannot read {text!r} as learning rates (1e-3,3e-3)")
    return rates
