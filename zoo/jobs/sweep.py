"""Name the jobs of a sweep by the hashes of their configs, and keep a record of them in the sweep's folder.

SWEEP/sweep.json    {"launches": [{"when": "…", "overrides": […]}],
                     "jobs": {"3f9a2c1104": {"arm": "attention=mqa", "seed": 0, "overrides": […]}, …}}
SWEEP/3f9a2c1104/   the run of that job

A job's state is read from its folder. So a sweep that was interrupted, or that is started again with more values, runs
only the missing jobs, however their overrides are spelled or ordered.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import disk, grammar, runs
from zoo.compose.composing import Composed
from zoo.errors import ConfigError, Pruned
from zoo.report.arms import ASIDE, ENDED, SEARCHED, name_arms
from zoo.training.planning import TrainingPlan
from zoo.training.restarts import has_checkpoint

NO_RESULT = (
    "logger",
    "launcher",
    "nproc",
    "nodes",
    "restarts",
    "log_every",
    "checkpoint",
    "keep",
    "keep_best",
    "sample",
)
"""Settings that do not change the training's result: two configs that differ only in these are one job."""

DIGEST = 5
"""Bytes of a job's hash: among 1,000 jobs, two share a hash with probability 5e-7."""

FEW = 3
"""The largest number of points named in a message."""

NO_TIME = (
    *("seed", "data_seed", "steps", "schedule", "clip", "eval_every", "eval_part", "save_every", "skip_nonfinite"),
    "parametrisation",
)
"""Settings besides NO_RESULT that do not change the seconds of a step. Of the optimizer's settings, only its kind
does."""


def hash_config(planned: TrainingPlan) -> str:
    """Hash everything that determines a run's result: its settings, its data and its model, all resolved."""
    settings = grammar.to_essentials(planned.settings)
    return _hash(planned, {name: value for name, value in settings.items() if name not in NO_RESULT})


def hash_pace(planned: TrainingPlan) -> str:
    """Hash everything that determines the seconds of a step."""
    settings = {**grammar.to_essentials(planned.settings), "optim": planned.settings.optim.kind}
    return _hash(planned, {name: value for name, value in settings.items() if name not in (*NO_RESULT, *NO_TIME)})


def _hash(planned: TrainingPlan, settings: Mapping[str, Any]) -> str:
    content = {
        "settings": settings,
        **{name: grammar.to_essentials(getattr(planned, name)) for name in ("data", "spec")},
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST).hexdigest()


@dataclass(frozen=True)
class SweepPoint:
    """A valid point of a sweep: a job with its checked config."""

    name: str
    """The hash of the config, which also names the job's folder."""
    typed: Sequence[str]
    """The overrides as typed, without overrides of Hydra's own settings. If a key is given twice, the last counts."""
    planned: TrainingPlan
    arm: str = ""
    """The name of the job's arm in an experiment. Arms of a sweep are named by their overrides."""

    @classmethod
    def of(cls, composed: Composed, planned: TrainingPlan, arm: str = "") -> SweepPoint:
        last = {each.partition("=")[0]: each for each in composed.typed if not is_hydras(each)}
        return cls(hash_config(planned), list(last.values()), planned, arm)

    @property
    def seed(self) -> int:
        return self.planned.settings.seed


def is_hydras(override: str) -> bool:
    """Tell whether an override sets one of Hydra's settings."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def find_key(override: str) -> str:
    """Return the key that an override sets."""
    return override.lstrip("+").partition("=")[0]


def list_varied(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return for each job the overrides that not all jobs share, as one text. Jobs are given by their overrides."""
    shared = set.intersection(*map(set, jobs))
    return [" ".join(override for override in each if override not in shared) for each in jobs]


def group_by_arm(jobs: Sequence[SweepPoint]) -> dict[str, list[SweepPoint]]:
    """Group jobs that differ only in their seeds into arms, under the names that `zoo report` uses."""
    found: dict[str, list[SweepPoint]] = {}
    for name, job in zip(name_arms([each.typed for each in jobs]), jobs, strict=True):
        found.setdefault(job.arm or name, []).append(job)
    return found


def drop_duplicates(jobs: Iterable[SweepPoint]) -> tuple[list[SweepPoint], list[tuple[SweepPoint, SweepPoint]]]:
    """Drop jobs with equal configs. Returns the first job of each config, and each duplicate with its first job."""
    kept: dict[str, SweepPoint] = {}
    dropped = []
    for each in jobs:
        first = kept.setdefault(each.name, each)
        if first is not each:
            dropped.append((each, first))
    return list(kept.values()), dropped


def describe_dropped(jobs: Sequence[SweepPoint], dropped: Sequence[tuple[SweepPoint, SweepPoint]]) -> str | None:
    """Describe the duplicate points in one line; None if there are none."""
    if not dropped:
        return None
    names = list_varied([*(each.typed for each, _ in dropped), *(each.typed for each in jobs)])[: len(dropped)]
    more = f" … ({len(names) - FEW} more)" if len(names) > FEW else ""
    verb = "point is" if len(names) == 1 else "points are"
    return f"{len(names)} {verb} the same run as another, and run once: {'; '.join(names[:FEW])}{more}"


@dataclass
class Sweep:
    """The folder of a sweep: the jobs in its sweep.json, and the state of each."""

    folder: Path
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Read a sweep's folder, which may be new and empty. Raises CheckpointError for a faulty sweep.json."""
        return cls(folder, {"launches": [], "jobs": {}, **runs.read_sweep_record(folder)})

    def begin(self, overrides: Sequence[str]) -> None:
        """Add a launch of the sweep to the record."""
        self.content["launches"].append({"when": time.strftime("%Y-%m-%dT%H:%M:%S"), "overrides": list(overrides)})

    def add(
        self,
        jobs: Iterable[SweepPoint],
        predicted: Mapping[str, Mapping[str, Any]],
        search: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add jobs to the record, with predicted figures by job name; earlier figures stay if not predicted again. Arms
        are named over all jobs of the folder. `search` has further fields for jobs of a learning-rate search, which do
        not count as an arm's runs unless they are also added without `search`."""
        known = self.content["jobs"]
        for each in jobs:
            new = {"arm": "", "seed": each.seed, "overrides": list(each.typed), "search": True}
            job = known.setdefault(each.name, new)
            if each.arm:
                job["label"] = each.arm
            job.pop("trial", None)
            if search is None:
                job.pop("search", None)
            else:
                job |= search[each.name]
            figures = {name: value for name, value in predicted[each.name].items() if value is not None}
            job["predicted"] = {**job.get("predicted", {}), **figures}
        self.name_arms()
        self.write()

    def read_solved(self, budget: str, by: str) -> dict[str, int]:
        """Read the values that an earlier match in `time` chose for `by` (the steps), keyed by the arms' names before
        that match. Empty if the budget is not `time`, or if no match with this budget and `by` is recorded."""
        match = self.content.get("match") or {}
        if budget != "time" or (match.get("budget"), match.get("by")) != (budget, by):
            return {}
        return {arm["was"]: arm[by] for arm in match["arms"] if "was" in arm and isinstance(arm.get(by), int)}

    def name_arms(self) -> None:
        """Set the name of each job's arm as `zoo report` does."""
        known = self.content["jobs"].values()
        aside = (*ASIDE, *SEARCHED) if any("search" in job for job in known) else ASIDE
        for job, name in zip(known, name_arms([job["overrides"] for job in known], aside), strict=True):
            job["arm"] = job.get("label") or name

    def write(self) -> None:
        disk.write_text(self.folder / runs.SWEEP, json.dumps(self.content, indent=2) + "\n")

    def find_missing(
        self, jobs: Iterable[SweepPoint], search: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list[SweepPoint]:
        """List the jobs that have not ended. Diverged runs and pruned trials of a `search` have ended. Raises
        ConfigError if another process runs a missing job."""
        trials = {name for name, said in (search or {}).items() if "trial" in said}
        statuses = ((each, self.read_status(each.name)) for each in jobs)
        missing = [
            each
            for each, status in statuses
            if status not in ENDED and not (status == Pruned.status and each.name in trials)
        ]
        busy = [self.folder / each.name for each in missing if runs.is_locked(self.folder / each.name)]
        if busy:
            would = "wait for it, stop it, or name another folder"
            raise ConfigError(*(f"{folder}: another process is training in it ({would})" for folder in busy))
        return missing

    def read_status(self, name: str) -> str | None:
        """Read a job's status from its result.json; None if there is none."""
        return runs.read_whole_result(self.folder / name / runs.RESULT).get("status")

    def describe(self, jobs: Sequence[SweepPoint], missing: Sequence[SweepPoint]) -> str | None:
        """Describe in one line the jobs that are done or resumed; None if all jobs start anew."""
        resumed = sum(has_checkpoint(self.folder / each.name) for each in missing)
        parts = [f"{len(jobs) - len(missing)} done"] if len(missing) < len(jobs) else []
        parts += [f"{resumed} to resume"] if resumed else []
        if not parts:
            return None
        count = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
        return f"{self.folder}: of {count}, {', '.join(parts)}, {len(missing) - resumed} to start"
