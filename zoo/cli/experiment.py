"""`zoo experiment`: compare named architectures, from a file or from flags: plan, run, report."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import report
from zoo.cli.common import read_arms, say
from zoo.cli.options import argument, flag, option
from zoo.cli.outlook import note_crowding, print_plan
from zoo.cli.showing import Json
from zoo.errors import ConfigError
from zoo.units import format_seconds

if TYPE_CHECKING:
    from zoo.experiments.experiment import Experiment
    from zoo.experiments.judging import ExperimentOutcome
    from zoo.jobs.outlook import Outlook


def run(
    words: list[str] | None = argument(
        "A file (YAML) or the name of a recipe; then overrides of all arms.", metavar="[FILE] [OVERRIDES]..."
    ),
    plan: bool = flag("Show the runs, their costs, and the minimum detectable difference. [default]"),
    run: bool = flag("Train the missing runs, and report the verdicts."),
    show: bool = flag("Report the verdicts on the existing runs.", "--report"),
    arm: list[str] | None = option(
        "An arm and its overrides; the first is the baseline. May be given several times.", metavar="NAME=OVERRIDES"
    ),
    match: str | None = option(
        "Make a cost equal in all arms: params, active, non_embedding, flops, kv, data, time.", metavar="BUDGET"
    ),
    match_by: str | None = option("With --match: the key that is adjusted. [default: as in zoo train]", metavar="KEY"),
    tune: bool = flag("Tune the learning rate of each arm first, on a separate seed and separate data."),
    seeds: str | None = option(
        "Seeds per arm; several numbers for interim analyses (looks): 3,6,10. [default: 3]",
        metavar="N[,N...]",
    ),
    margin: float | None = option(
        "Equivalence margin: the largest difference that does not matter. [default: none: no arm is called equivalent]"
    ),
    metric: str | None = option("The metric to compare. [default: val_loss]"),
    sigma: float | None = option(
        "With --plan: standard deviation of the paired (same-seed) difference between two arms. [default: the file's, "
        "else estimated from stored results of similar-sized models]"
    ),
    out: Path | None = option("The folder of the runs. [default: sweeps/experiments/NAME]", metavar="FOLDER"),
    measure: bool = option("With --plan: time 3 steps per arm.", default=True),
    as_json: Json = False,
) -> None:
    """Compare architectures: named arms, matched on one cost, equally tuned, with the same seeds.

    Arms, seeds and expectations are registered before the first run; later changes are listed with the verdict. A
    verdict is better, worse, equivalent within the margin, or inconclusive. An expectation that is not met is a result
    too: the exit code is 0.

    \b
    Example:
      zoo experiment model=llama-tiny --arm plain= --arm mqa=attention=mqa --run
    """
    if sum((plan, run, show)) > 1:
        raise ConfigError("experiment: --plan, --run and --report exclude each other (one of them)")
    for name, value in (("margin", margin), ("sigma", sigma)):
        if value is not None and value <= 0:
            raise ConfigError(f"{name}: is a number above 0, found {value:g} (--{name} 0.01, say)")
    stated: dict[str, Any] = {"match": match, "match_by": match_by, "margin": margin, "metric": metric, "sigma": sigma}
    stated |= {"tune": tune or None, "seeds": _read_seeds(seeds)}
    from zoo.experiments.looking import FOLDER

    name, made = _read(list(words or ()), arm or [], {key: value for key, value in stated.items() if value is not None})
    folder = out or FOLDER / name
    if not (run or show):
        return _plan(made, folder, measure, as_json)
    outcome = _judge(name, made, folder, run, as_json)
    if as_json:
        print(report.format_json(asdict(outcome)))


def _read_seeds(text: str | None) -> int | list[int] | None:
    """Read `5`, or the looks `3,6,10`. Raises ConfigError for other texts."""
    if text is None:
        return None
    try:
        looks = [int(each) for each in text.split(",")]
    except ValueError:
        raise ConfigError(f"seeds: is a number or several, found {text!r} (--seeds 5, or the looks 3,6,10)") from None
    if min(looks) < 2 or sorted(set(looks)) != looks:
        raise ConfigError(
            f"seeds: is {text}, and each must be 2 or more and above the one before (--seeds 5, or looks 3,6,10)"
        )
    return looks[0] if len(looks) == 1 else looks


def _read(words: list[str], arms: list[str], stated: dict[str, Any]) -> tuple[str, Experiment]:
    """Read the experiment of a file or a recipe, or make one of flags; flags replace the file's values. Raises
    ConfigError with all faults."""
    from zoo.experiments.experiment import find_recipe, list_recipes, make_experiment, read_node

    first = words[0] if words else ""
    named = (first.endswith((".yaml", ".yml")) and "=" not in first) or first in list_recipes()
    if not named and not arms:
        hint = "a FILE, the name of a recipe, or --arm NAME=OVERRIDES twice"
        raise ConfigError(f"experiment: names no arms{f', found {first!r}' if first else ''} ({hint})")
    if named and not (arms or stated or words[1:]):
        return find_recipe(first)
    own = read_arms(arms)
    file, node = read_node(first) if named else (Path("-".join(re.sub(r"[^\w.]+", "_", name) for name in own)), {})
    node |= stated | ({"arms": own} if own else {})
    node["shared"] = [*_words(node.get("shared", [])), *words[named:]]
    return file.stem if named else file.name, make_experiment(node, file)


def _words(stated: Any) -> list[str]:
    return stated.split() if isinstance(stated, str) else list(stated)


def foresee(experiment: Experiment, folder: Path, measure: bool) -> tuple[Outlook, list[str], list[str], str]:
    """Estimate an experiment before it runs: its outlook, lines on its design, the expectations that it cannot detect,
    and a note on the noise assumed. Raises ConfigError for an experiment that trains no arms on text."""
    from zoo.experiments.power_check import assume_noise, describe_design, list_blind
    from zoo.experiments.running import plan_experiment

    if experiment.probe is not None or experiment.ladder is not None:
        raise ConfigError("plan: is for arms that train on text, not for a probe or a ladder (--run)")
    outlook, note = assume_noise(experiment, plan_experiment(experiment, folder, measure=measure))
    return outlook, describe_design(experiment, outlook), list_blind(experiment, outlook), note


def _plan(experiment: Experiment, folder: Path, measure: bool, as_json: bool) -> None:
    if experiment.ladder is not None:
        return _plan_ladders(experiment, measure, as_json)
    if experiment.probe is not None:
        return _plan_probe(experiment, measure, as_json)
    outlook, design, blind, note = foresee(experiment, folder, measure)
    if as_json:
        print(report.format_json({**outlook.to_dict(), "cannot_see": blind}))
        return
    print_plan(outlook)
    if note:
        say(note)
    for line in [*design, *blind]:
        print(line)


def _plan_ladders(experiment: Experiment, measure: bool, as_json: bool) -> None:
    """Print the sizes of each arm's ladder, and what they cost."""
    from zoo.cli.ladder import print_plans
    from zoo.experiments.laddering import plan_ladders
    from zoo.ladder import predict_seconds

    ladders = plan_ladders(experiment, False)
    print_plans({arm: predict_seconds(each) if measure else each for arm, each in ladders.items()}, as_json)


def _plan_probe(experiment: Experiment, measure: bool, as_json: bool) -> None:
    """Print the trainings of a probe, what they cost, and what they can detect."""
    from zoo.experiments.probe_power import foresee_probe, list_blind_probe, list_power_notes, make_power_table
    from zoo.experiments.probing import plan_probe
    from zoo.experiments.recipe_tables import make_plan_table

    planned, powers = plan_probe(experiment, measure), foresee_probe(experiment)
    blind = list_blind_probe(experiment, powers)
    if as_json:
        power = [each.to_dict() for each in powers]
        print(report.format_json({"arms": planned, "power": power, "cannot_see": blind}))
        return
    report.print_tables(make_plan_table(planned))
    bound = "" if experiment.minutes is None else f", at most {experiment.minutes} minutes on two cores"
    trainings = sum(each["trainings"] for each in planned.values())
    print(
        f"{trainings:.0f} training runs{bound}; tokens, FLOPs and seconds are summed over an arm's runs. --run leaves "
        "out those that the folder has"
    )
    if measure:
        cpus, seconds = os.cpu_count() or 1, sum(each["seconds"] for each in planned.values())
        said = f"about {format_seconds(seconds / cpus)} on {cpus} CPUs"
        print(f"{said}, one training run on each: from three timed updates per arm", *note_crowding(), sep="\n")
    else:
        print("seconds are unknown, as no step was timed (without --no-measure they are predicted)")
    if powers:
        report.print_tables(make_power_table(experiment, powers))
        print(*list_power_notes(experiment, powers), *blind, sep="\n")


def _judge(name: str, experiment: Experiment, folder: Path, trains: bool, quiet: bool) -> ExperimentOutcome:
    """Run or read an experiment; print and write its verdict."""
    from zoo.cli.observing import PrintingObserver, naming_interrupts
    from zoo.experiments.looking import judge_in_folder
    from zoo.experiments.recipe_tables import make_outcome_tables

    with naming_interrupts(name, folder):
        made = judge_in_folder(name, experiment, folder, trains, PrintingObserver())
    if quiet:
        return made.outcome
    report.print_tables(*make_outcome_tables(name, experiment, made.outcome))
    if made.report is not None:
        report.print_tables(*made.report.hints())
    say(f"{folder}: verdict.json, report.html and the picture")
    return made.outcome
