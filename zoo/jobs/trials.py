"""Search an arm's learning rate with optuna: draw rates one after another, and end poor runs early.

TPE (Bergstra et al., 2011) draws the rates. Asynchronous successive halving (Li et al., 2020, ASHA) ends a run that, at
a ninth or a third of its steps, is not among the best third of its arm's runs so far. Only runs of one arm are
compared, at the same step of the same schedule. A run whose loss is within TOLERANCE of the best is not ended.

The sweep's folder has a journal of all trials. Workers share it, and an interrupted search resumes from it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.analysis.verdict.rate_optimum import TOLERANCE, find_good_window
from zoo.errors import ConfigError, Pruned
from zoo.jobs.rates import RateSearch
from zoo.jobs.sweep import SweepPoint
from zoo.training.callbacks import TrainingState, followed

if TYPE_CHECKING:
    from optuna import Study

JOURNAL = "search.journal"
"""optuna's record of all trials, in the sweep's folder."""

DECADES = 1.0
"""Rates are drawn up to this many decades below and above the config's."""

THIRD = 3
"""ASHA's reduction factor: at each rung one run in THIRD continues, to THIRD times as many steps."""

AT_START = 5
"""The number of trials that are drawn at random before TPE starts."""

KEY = "quarter"
"""The name of a trial's parameter: quarter decades from the config's rate."""


def require_optuna() -> Any:
    """Import optuna, with its log lines silenced. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "trials: needs optuna (pip install 'optuna>=5'; without --trials a grid is searched)"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna


def check_trials(jobs: Sequence[SweepPoint]) -> None:
    """Raise ConfigError if optuna is not installed, or if a job's first evaluation comes too late to end it early."""
    require_optuna()
    for settings in (each.planned.settings for each in jobs):
        every, latest = settings.eval_every, settings.steps // THIRD
        if every is None or every > latest:
            found = f"eval_every={'null' if every is None else every} of {settings.steps} steps"
            would = f"eval_every={max(settings.steps // THIRD**2, 1)}"
            raise ConfigError(f"trials: poor rates are ended by their evaluations, found {found} ({would})")


@dataclass
class Trials(RateSearch):
    """The search of one arm by `count` trials, `at_once` per round."""

    study: Any = None
    steps: int = 0
    count: int = 0
    at_once: int = 1
    numbers: dict[float, int] = field(default_factory=dict)
    """The trial numbers of this round, by place."""

    @classmethod
    def open(cls, folder: Path, job: SweepPoint, count: int, at_once: int) -> Trials:
        """Open the Optuna study of an arm's search, named after its first seed's job, or resume it from the journal."""
        optuna, settings = require_optuna(), job.planned.settings
        study = open_study(folder, job.name, settings.steps, create=True)
        if not study.trials:
            study.enqueue_trial({KEY: 0.0})  # the config's own rate, which the arm's first seed runs in any case
        made = cls(settings.optim.lr, study=study, steps=settings.steps, count=count, at_once=at_once)
        for each in study.trials:
            if each.state.is_finished():
                done = each.state is optuna.trial.TrialState.COMPLETE
                made.losses[each.params[KEY]] = each.value if done and each.value is not None else math.inf
        return made

    def ask(self) -> list[float]:
        optuna = require_optuna()
        self.numbers = {}
        left = min(self.count - sum(each.state.is_finished() for each in self.study.trials), self.at_once)
        running = optuna.trial.TrialState.RUNNING  # left by an interrupted search
        for each in self.study.get_trials(states=(running,))[: max(left, 0)]:
            self.numbers[each.params[KEY]] = each.number
        for _ in range(left - len(self.numbers)):
            reach = 4 * DECADES
            trial = self.study.ask({KEY: optuna.distributions.FloatDistribution(-reach, reach)})
            self.numbers[trial.params[KEY]] = trial.number
        return list(self.numbers)

    @property
    def finished(self) -> bool:
        return sum(each.state.is_finished() for each in self.study.trials) >= self.count

    def tell(self, place: float, loss: float | None, status: str | None = None) -> None:
        states = require_optuna().trial.TrialState
        super().tell(place, loss)
        if self.losses[place] < math.inf:
            self.study.tell(self.numbers[place], self.losses[place])
        else:
            self.study.tell(self.numbers[place], state=states.PRUNED if status == Pruned.status else states.FAIL)

    def note(self, place: float) -> dict[str, Any]:
        return {"trial": {"study": self.study.study_name, "number": self.numbers[place], "steps": self.steps}}

    def to_dict(self) -> dict[str, Any]:
        """Write the result as `RateSearch.to_dict` does, with the number of `pruned` runs. The window is open on the
        side of a pruned run, whose final loss is unknown."""
        states, found, tried = require_optuna().trial.TrialState, super().to_dict(), sorted(self.losses)
        pruned = {each.params[KEY] for each in self.study.get_trials(states=(states.PRUNED,))}
        window = find_good_window(self.losses)
        low, high = (tried.index(each) if each in tried else None for each in (window.low, window.high))
        beyond = {*([] if not low else [tried[low - 1]]), *([] if high is None else tried[high + 1 : high + 2])}
        return {**found, "open": found["open"] or bool(beyond & pruned), "pruned": len(pruned)}


def open_study(folder: Path, name: str, steps: int, *, create: bool = False) -> Study:
    """Open the study of an arm in the journal of a sweep; with `create` a missing study is created."""
    optuna = require_optuna()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    how: dict[str, Any] = {"study_name": name, "storage": storage, "pruner": make_pruner(steps)}
    how["sampler"] = optuna.samplers.TPESampler(seed=0, n_startup_trials=AT_START, constant_liar=True)
    return optuna.create_study(**how, load_if_exists=True) if create else optuna.load_study(**how)


def make_pruner(steps: int) -> Any:
    """Make the optuna pruner for runs of `steps` steps."""
    optuna = require_optuna()

    class Halving(optuna.pruners.SuccessiveHalvingPruner):
        """ASHA that never ends a run whose loss is within TOLERANCE of the best at the same step."""

        def prune(self, study: Study, trial: Any) -> bool:
            if not super().prune(study, trial):
                return False
            at = trial.last_step
            losses = [each.intermediate_values.get(at, math.inf) for each in study.get_trials(deepcopy=False)]
            return not trial.intermediate_values[at] <= min(losses) * (1 + TOLERANCE)

    return Halving(min_resource=max(steps // THIRD**2, 1), reduction_factor=THIRD)


class PruningCallback:
    """Report a run's evaluations to its optuna trial, and end the run if the trial is to be pruned."""

    def __init__(self, folder: Path, study: str, number: int, steps: int) -> None:
        optuna = require_optuna()
        self.study, self.steps = open_study(folder, study, steps), steps
        self.reported = self.study.trials[number].intermediate_values
        # optuna has no public way from a trial's number to the trial
        self.trial = optuna.trial.Trial(self.study, self.study.trials[number]._trial_id)

    def after_eval(self, state: TrainingState) -> None:
        loss = state.metrics.get("val_loss")
        if loss is None or state.step >= self.steps:
            return
        if state.step not in self.reported:  # a resumed run repeats evaluations
            self.trial.report(loss, state.step)
        if self.trial.should_prune():
            raise Pruned(f"ended after step {state.step}, where its loss {loss:.4f} is not among its arm's best third")


@contextmanager
def pruned_as_trial(folder: Path, trial: dict[str, Any] | None) -> Iterator[None]:
    """While the block runs, report evaluations to the job's optuna trial (`trial`, from sweep.json), which may end the
    run. Without a trial do nothing."""
    if trial is None:
        yield
        return
    with followed([PruningCallback(folder, **trial)]):
        yield
