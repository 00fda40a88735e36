"""Run a probe on two control models: one that must solve it, and one that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.probes.all_probes import make_probe
from zoo.probes.battery import run_probe
from zoo.probes.outcome import ProbeOutcome, name_level
from zoo.probes.outcome_store import name_folder

if TYPE_CHECKING:
    from concurrent.futures import Executor

NEGATIVE = ("llama-tiny", "attention=sliding", "window=1")
"""The negative control of every probe: a model in which each token attends only to itself."""

CONTROL_RATES = (1e-3, 10**-2.5, 1e-2)
"""Learning rates of controls: the middle of RATES."""


@dataclass(frozen=True)
class ControlPair:
    """Outcomes of the positive control, which must solve the probe, and of the negative control, which must not."""

    positive: ProbeOutcome
    negative: ProbeOutcome
    extended: bool = False
    """Whether levels were added to the probe (`run_controls`)."""

    @property
    def separates(self) -> bool:
        """Whether the probe separates a model that can solve it from one that cannot."""
        return self.positive.reach > self.negative.reach

    def describe(self) -> str:
        """Say in one line whether the probe separates the controls."""
        kind = self.positive.level_is
        reached, blind = (name_level(each, each.reach) for each in (self.positive, self.negative))
        if self.separates:
            return f"separates: the positive control reaches {reached} {kind}, a model without token mixing {blind}"
        if blind == "none":
            return "does not separate: neither control reaches a level, so that a model's failure says nothing"
        return f"does not separate: a model without token mixing reaches {blind} {kind}, too"


def run_controls(
    name: str,
    *,
    size: str = "card",
    settings: Mapping[str, Any] | None = None,
    pool: Executor | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ControlPair:
    """Run a probe on its controls, with one seed, at the best of three learning rates. Trainings are stored in a
    `folder`.

    While the positive control reaches the hardest level, a harder level is added (`Probe.extend`), so that good models
    can be told apart. The outcomes' settings are those of the extended probe.
    """
    asked = task = make_probe(name, size, settings)
    how = {"size": size, "seeds": 1, "rates": CONTROL_RATES, "pool": pool}

    def run(label: str, model: str, *overrides: str) -> ProbeOutcome:
        place = f"{name}-{size}-to-{max(task.levels)}"
        at = folder and folder / name_folder("control", (model, *overrides)) / place
        told: Any = {"folder": at, "say": lambda line: say(f"{label} control of {line}")}
        outcome = run_probe(model, name, overrides, settings=task.settings(), **how, **told)
        what = f"the {label} control is {' '.join((model, *overrides))}"
        return replace(outcome, model=f"{label} control", overrides=(), notes=(*outcome.notes, what))

    positive = run("positive", *task.positive)
    while positive.reach == max(task.levels) and (harder := task.extend()):
        task = harder
        positive = run("positive", *task.positive)
    pair = ControlPair(positive, run("negative", *NEGATIVE), task != asked)
    return replace(pair, positive=replace(positive, notes=(*positive.notes, pair.describe())))
