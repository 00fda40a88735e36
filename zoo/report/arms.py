"""Group the runs of an experiment into arms: runs that differ only in their seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

from zoo import runs
from zoo.analysis.verdict.difference import UNKNOWN, LossNoise
from zoo.analysis.verdict.score_noise import find_answer_noise
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.elementwise_flops import count_elementwise
from zoo.costs.setup import Setup
from zoo.errors import CheckpointError, Diverged, refuse
from zoo.report.history import MEASURES, RunRecord

SEED, HYDRAS = "seed", "hydra."
ASIDE = (SEED, HYDRAS)
"""Prefixes of overrides that do not distinguish arms."""
SEARCHED = ("optim.lr=", "eval_part=")
"""Prefixes of the overrides that a learning-rate search sets; they do not distinguish arms either."""
ALL_RUNS = "all runs"
"""The name of an arm without overrides of its own: all runs share them."""

CURRENCIES = ("params", "tokens", "flops", "elementwise", "cache_bytes", "seconds")
"""The costs of arms, called currencies: parameters, tokens and FLOPs of training, elementwise operations of the forward
passes (approximate, and counted as FLOPs by no convention), bytes of KV cache and recurrent states for one row of the
training length, seconds of training."""

NAMES = {
    **{"params": "parameters", "flops": "training FLOPs"},
    **{"elementwise": "elementwise FLOPs", "cache_bytes": "KV cache per sequence"},
}
"""The names of costs in tables and sentences, where they are not the currency's own."""

ENDED = ("done", Diverged.status)
"""The statuses of runs that have an outcome. They are not run again, because they would end in the same way."""

ALIKE = 0.01
"""Arms are matched in a cost if their values differ by at most this fraction."""


@dataclass(frozen=True)
class Arm:
    """The finished and diverged runs of an arm, by seed."""

    name: str
    runs: Mapping[int, RunRecord]
    search: Mapping[str, Any] | None = None
    """The search of the arm's learning rate in its sweep; None without one."""

    @classmethod
    def of_runs(cls, name: str, by_seed: Mapping[int, RunRecord]) -> Arm:
        """Make an arm of its ended runs, with the search that their sweep has recorded."""
        search = next((found for run in by_seed.values() if (found := run.search)), None)
        return cls(name, dict(sorted(by_seed.items())), search)

    @property
    def finished(self) -> Mapping[int, RunRecord]:
        """The runs that did not diverge; all runs if every run diverged."""
        return {seed: run for seed, run in self.runs.items() if run.status == "done"} or self.runs

    @cached_property
    def crowding(self) -> float:
        """The highest load per CPU at which a run started. Above 1, other programs have slowed the run."""
        return max((runs.read_crowding(run.folder) for run in self.runs.values()), default=0.0)

    def values(self, metric: str) -> dict[int, float]:
        """Read the metric of each run, by seed; infinite for a run that diverged. Raises ConfigError for a run without
        the metric."""
        found = {
            seed: math.inf if run.status == Diverged.status else _find(run, metric) for seed, run in self.runs.items()
        }
        missing = (self.runs[seed].folder for seed, value in found.items() if value is None)
        refuse(f"{folder}: has no {metric} (--metric NAME names another)" for folder in missing)
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def pieces(self) -> dict[int, list[tuple[float, int]]]:
        """Read the losses of finished runs, by seed: nats and number of targets of each piece of the validation
        split."""
        found = {seed: run.result.get("val_pieces") for seed, run in self.finished.items()}
        return {seed: [(float(nats), int(count)) for nats, count in pieces] for seed, pieces in found.items() if pieces}

    def least_noise(self, metric: str) -> LossNoise:
        """Find a lower bound of the standard deviation of a run's metric: an accuracy's sampling error. UNKNOWN for any
        other metric, and if every run diverged."""
        if metric not in MEASURES or not metric.endswith("accuracy"):
            return UNKNOWN
        finite = [each for each in self.values(metric).values() if math.isfinite(each)]
        counts = [sum(count for _, count in each) for each in self.pieces().values()]
        return find_answer_noise(finite, max(counts)) if finite and counts else UNKNOWN

    @cached_property
    def costs(self) -> dict[str, float]:
        """The mean of each of CURRENCIES over the finished runs, if all have it. The cache's bytes and the elementwise
        operations are priced for the model of one run."""
        outcomes = [run.outcome for run in self.finished.values()]
        found = {
            name: mean(float(each[name]) for each in outcomes)
            for name in CURRENCIES
            if all(each.get(name) is not None for each in outcomes)
        }
        run = next(iter(self.runs.values()))
        cache, each_token = kv_cache(run.spec, Setup(context=run.config.get("seq_len"))), count_elementwise(run.spec)
        if each_token is not None and "tokens" in found:
            found["elementwise"] = each_token * found["tokens"]
        return found if cache is None else {**found, "cache_bytes": float(cache["bytes"])}


def _find(run: RunRecord, metric: str) -> float | None:
    return next((each[metric] for each in (run.outcome, run.result, run.measured) if metric in each), None)


def group_arms(records: Sequence[RunRecord]) -> tuple[list[Arm], list[str]]:
    """Group ended runs into arms by their overrides without seeds; `name_arms` names the arms. Returns the arms in the
    order of their first runs, and a line for each run that has not ended or is not readable. Runs of searches are left
    out. Raises ConfigError for two runs of one arm and seed."""
    done, unfinished = [], []
    for each in records:
        try:
            if each.of_search:
                continue
            if (status := each.status) in ENDED:
                each.read()
                done.append(each)
            else:
                unfinished.append(f"{each.folder}: is {status}, and left out")
        except CheckpointError as error:
            unfinished.append(f"{error.faults[0]}; the run is left out")
    named = name_arms([_own_overrides(each) for each in done])
    names = [each.job.get("label") or name for each, name in zip(done, named, strict=True)]
    arms: dict[str, dict[int, RunRecord]] = {}
    faults = []
    for record, name in zip(done, names, strict=True):
        seed = record.config.get(SEED) or 0
        if (other := arms.setdefault(name, {}).setdefault(seed, record)) is not record:
            faults.append(f"{record.folder}: is another run of {name} with seed {seed}, beside {other.folder} (one)")
    refuse(faults)
    return [Arm.of_runs(name, by_seed) for name, by_seed in arms.items()], unfinished


def _own_overrides(record: RunRecord) -> Sequence[str]:
    """List the overrides that may distinguish a run's arm: all but those that a learning-rate search has set."""
    return record.overrides if record.search is None else [e for e in record.overrides if not e.startswith(SEARCHED)]


def name_arms(overrides: Sequence[Sequence[str]], aside: tuple[str, ...] = ASIDE) -> list[str]:
    """Name each run's arm by the overrides that not all runs share; ALL_RUNS if there are none. Overrides with the
    prefixes `aside` are left out, by default those of seeds and of Hydra."""
    words = [[_shorten(word) for word in each if not word.startswith(aside)] for each in overrides]
    shared = set.intersection(*map(set, words)) if words else set()
    return [" ".join(word for word in own if word not in shared) or ALL_RUNS for own in words]


def name_runs(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Name each run by the overrides that not all runs share, seeds included; "" if there are none."""
    return ["" if name == ALL_RUNS else name for name in name_arms(overrides, (HYDRAS,))]


def _shorten(word: str) -> str:
    """Shorten an override: `attention@model.attention=mqa` to `attention=mqa`, `++model.n_layers=2` to `n_layers=2`,
    `optim.lr=1e-3` to `optim.lr=0.001`."""
    key, _, value = word.lstrip("+").partition("=")
    return f"{key.partition('@')[0].removeprefix('model.')}={_write_number(value)}"


def _write_number(value: str) -> str:
    """Write a float in one form (1e-3 as 0.001), so that an arm keeps its name when a sweep is continued with another
    spelling. Any other value is returned as it is."""
    try:
        return value if value.isdecimal() else f"{float(value):g}"
    except ValueError:
        return value


def find_unmatched(own: Mapping[str, float], theirs: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Divide costs by another arm's, for the costs (`names`) that differ by more than 1 % (ALIKE)."""
    ratios = {name: own[name] / theirs[name] for name in names if name in own and theirs.get(name)}
    return {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > ALIKE}


def list_ratios(unmatched: Mapping[str, float]) -> str:
    """Format the ratios of costs in a line: `parameters ×1.35, KV cache per sequence ×0.34`."""
    return ", ".join(f"{NAMES.get(name, name)} ×{ratio:.2f}" for name, ratio in unmatched.items())
