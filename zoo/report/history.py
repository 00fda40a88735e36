"""Read config, metrics and outcome from the folders of runs, which may still be training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import runs
from zoo.analysis.compare import compare_values, flatten, merge_orders
from zoo.costs.price import price
from zoo.errors import CheckpointError, ConfigError, name_options, refuse
from zoo.grammar.saved import read_model
from zoo.untrusted.json_file import check_shape
from zoo.untrusted.printable import shorten
from zoo.untrusted.yaml_file import parse_yaml

if TYPE_CHECKING:
    from zoo.untrusted.json_file import JsonShape

MEASURES = {
    **{
        "val_accuracy": "accuracy",
        "val_f1": "F1",
        "val_mrr": "MRR",
        "val_pearson": "Pearson",
        "val_spearman": "Spearman",
    },
    **{"val_reward_accuracy": "reward accuracy", "val_reward_margin": "reward margin"},
    **{"val_reward_chosen": "chosen reward", "val_reward_rejected": "rejected reward"},
}
"""Maps the metrics of labelled rows and of preferences to their display names."""

HIGHER = MEASURES.keys() - {"val_reward_rejected"}
"""The metrics of which more is better."""

LOSSES = ("train_loss", "val_loss", "bits_per_byte", *MEASURES)

RESULTS = ("steps", "tokens", "flops", *LOSSES, "seconds", "tokens_per_second", "mfu")
"""The figures of an outcome in which two runs are compared."""

SHOWN = ("status", "model", "params", "steps", "tokens", *LOSSES, "seconds")
UNREADABLE = "unreadable"
"""The status of a run whose files cannot be read."""

COLUMNS = ("name", "overrides", *SHOWN, "when", "path")
"""The keys of a run in `zoo runs`."""

AXES = {
    "tokens": "tokens seen",
    "steps": "steps",
    "seconds": "training time (s), excluding evaluation",
    "flops": "training FLOPs",
}
"""The x-axes of curves, with their labels."""

SMOOTHED_OVER = 0.04  # the window of the training curve's moving average, as a fraction of the run


@dataclass(frozen=True)
class RunRecord:
    """A run, read from its folder when a property is first used. The run may still be training."""

    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """The outcome (result.json); empty if there is none yet, or if the run was cut off."""
        return runs.read_result(self.folder / runs.RESULT)

    @property
    def sweep(self) -> Mapping[str, Any]:
        """The record of the run's sweep (sweep.json); empty for a single run."""
        file = self.folder.parent / runs.SWEEP
        return _read_sweep(self.folder.parent, file.stat().st_mtime_ns) if runs.is_file(file) else {}

    @cached_property
    def job(self) -> Mapping[str, Any]:
        """The run's entry in its sweep (a job in sweep.json); empty for a single run."""
        return self.sweep.get("jobs", {}).get(self.folder.resolve().name, {})

    @property
    def predicted(self) -> dict[str, Any]:
        """The figures that the run's sweep predicted, keyed as in the outcome; empty for a single run."""
        return self.job.get("predicted", {})

    @property
    def overrides(self) -> Sequence[str]:
        """The overrides that were typed for the run; without an outcome, those of its sweep's job."""
        return self.result.get("overrides") or self.job.get("overrides", ())

    @property
    def search(self) -> Mapping[str, Any] | None:
        """The learning-rate search of the run's arm, as its sweep has recorded it (`RateSearch.to_dict`); None if there
        is none."""
        return self.sweep.get("search", {}).get(self.job.get("arm"))

    @cached_property
    def measured(self) -> dict[str, Any]:
        """Measurements taken after the run's training, by name (measured.json)."""
        return runs.read_result(self.folder / runs.MEASURED)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The training config. Raises CheckpointError if its file is missing or invalid."""
        from zoo.untrusted.run_types import RunConfig

        return _read_mapping(self.folder / runs.CONFIG, RunConfig)

    @cached_property
    def spec(self) -> Any:
        """The model's Spec. Raises CheckpointError if its file is missing or invalid."""
        file = self.folder / runs.MODEL
        return read_model(file, _read_mapping(file))

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics. Raises CheckpointError if a line is not JSON; a half-written last line is left out."""
        return runs.read_lines(self.folder / runs.METRICS)

    def read(self) -> None:
        """Read all files that reports on a done run need. Raises CheckpointError for an unreadable file."""
        _ = self.result, self.predicted, self.measured, self.config, self.spec

    @property
    def of_search(self) -> bool:
        """Whether the run belongs to a sweep's learning-rate search, and so to no arm."""
        return "search" in self.job

    @property
    def status(self) -> str:
        """The status: `running` while a process has the folder's lock, else the status in the result, or `cut off`
        without a result."""
        if runs.is_locked(self.folder):
            return "running"
        return shorten(self.result.get("status") or "cut off", 40)

    @property
    def outcome(self) -> dict[str, Any]:
        """The figures named in `SHOWN` and `RESULTS`: from the result if the run is done, else the last logged
        values."""
        found = {key: self.result.get(key) for key in (*SHOWN, *RESULTS)}
        status = self.status
        if status != "done":
            found |= self._progress()
        return {**found, "status": status}

    def _progress(self) -> dict[str, Any]:
        last = {name: value for line in self.lines for name, value in line.items() if value is not None}
        figures = {name: last.get(name) for name in RESULTS}
        figures |= {"steps": last.get("step"), "train_loss": last.get("loss")}
        points = self.points()
        figures["seconds"] = round(float(points[-1]["seconds"]), 3) if points else None
        if (self.folder / runs.MODEL).is_file():
            spec = self.spec
            figures["params"] = price(spec, parts=["params"])["params"]["total"]
            figures["model"] = (
                self.result.get("model") or f"{spec.kind}, {spec.n_layers} layers of width {spec.d_model}"
            )
        return figures

    def decayed(self) -> list[dict[str, Any]]:
        """List the evaluations at the end of each decay, for a run with several (`schedule=wsd_s`); `trained_tokens` is
        the number of tokens that the weights were trained on."""
        return [line for line in self.lines if "trained_tokens" in line and line.get("val_loss") is not None]

    def points(self) -> list[dict[str, Any]]:
        """List the lines of metrics with their x-values on all axes: `steps`, `tokens`, `seconds` and, if counted,
        `flops`.

        Seconds count training steps only: the tokens between two lines divided by the measured tokens per second.
        """
        made, seconds, tokens = [], 0.0, 0
        for line in self.lines:
            if line.get("tokens_per_second") and line.get("tokens") is not None:
                seconds += (line["tokens"] - tokens) / line["tokens_per_second"]
                tokens = line["tokens"]
            made.append({**line, "steps": line["step"], "seconds": seconds})
        return made


def read_curve(lines: Iterable[Mapping[str, Any]], name: str, x: str = "tokens") -> tuple[list[float], list[float]]:
    """Read a metric's curve: the values of `x` and of the metric. Lines in which either is missing are left out."""
    points = [(line[x], line[name]) for line in lines if line.get(name) is not None and line.get(x) is not None]
    return [at for at, _ in points], [value for _, value in points]


def smooth(values: list[float], share: float = SMOOTHED_OVER) -> list[float]:
    """Compute the moving average over a fraction of the points. At the start, where the loss falls fast, the window is
    shortened to stay symmetric."""
    half, sums = int(share * len(values) / 2), [0.0, *accumulate(values)]
    edges = [(max(at - half, 0), min(at + min(half, at) + 1, len(values))) for at in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in edges]


@lru_cache(maxsize=8)
def _read_sweep(folder: Path, written: int) -> Mapping[str, Any]:
    """Read the record of a sweep. It is cached, because each run needs it. `written` is the time of sweep.json's last
    change, in ns: a new time makes a new entry."""
    return runs.read_sweep_record(folder)


def _read_mapping(file: Path, shape: type[JsonShape] | None = None) -> dict[str, Any]:
    try:
        return check_shape(parse_yaml(file), shape or dict[str, Any], str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file (a file that zoo train wrote)") from None


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a run's: it has metrics, or the outcome of a run that failed before its first step."""
    return any(runs.is_file(folder / name) for name in (runs.METRICS, runs.RESULT))


def find_runs(folder: Path) -> Iterator[RunRecord]:
    """Find the runs in a folder and below it, sorted by path; a sweep's runs are in the order of its jobs. Folders
    inside a run are not searched."""
    if is_run(folder):
        yield RunRecord(folder)
        return
    for parent, names, _ in os.walk(folder):
        try:
            place = {name: at for at, name in enumerate(runs.read_sweep(Path(parent)))}
        except CheckpointError:  # only the order is lost; readers of the record report the fault
            place = {}
        names.sort(key=lambda name: (place.get(name, len(place)), name))
        for name in list(names):
            if is_run(Path(parent, name)):
                names.remove(name)
                yield RunRecord(Path(parent, name))


def collect_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Collect runs from paths, each a run or a folder with runs below. Raises ConfigError with all faults."""
    found: dict[Path, RunRecord] = {}
    faults = []
    for path in paths:
        there = list(find_runs(path.expanduser())) if path.expanduser().is_dir() else []
        if not there:
            what = "has no run in it" if path.expanduser().is_dir() else "is no folder"
            faults.append(f"{path}: {what} (the folder of a run or of a sweep; `zoo runs` lists them)")
        found |= {each.folder.resolve(): each for each in there}
    refuse(faults)
    return list(found.values())


def list_rows(records: Sequence[RunRecord], root: Path | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Make a row of plain data per run, with the keys of `COLUMNS`. Also returns the faults of unreadable runs."""
    rows, faults = [], []
    for each in records:
        name = each.folder.relative_to(root) if root and each.folder.is_relative_to(root) else each.folder
        shown = str(name) if str(name) != "." else each.folder.resolve().name
        try:
            overrides, outcome = list(each.overrides), each.outcome
        except CheckpointError as error:
            overrides, outcome = [], {**dict.fromkeys(SHOWN), "status": UNREADABLE}
            faults += error.faults
        figures = (outcome[key] for key in SHOWN)
        row = (shown, overrides, *figures, _find_time(each.folder), str(each.folder.absolute()))
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows, faults


def _find_time(folder: Path) -> str:
    """Return the time of the newest line of metrics, or else of the outcome."""
    file = next(file for name in (runs.METRICS, runs.RESULT) if runs.is_file(file := folder / name))
    return datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "seconds")


def sort_rows(rows: Sequence[Mapping[str, Any]], by: str, reverse: bool = False) -> list[Mapping[str, Any]]:
    """Sort rows by a column, smallest first or with `reverse` largest first; rows without a value come last either way.
    Raises ConfigError for an unknown column."""
    if by not in COLUMNS:
        hint = name_options(by, COLUMNS)
        raise ConfigError(f"sort: there is no column {by!r}{hint}")
    known = [row for row in rows if row[by] is not None]
    return [*sorted(known, key=lambda row: row[by], reverse=reverse), *(row for row in rows if row[by] is None)]


def compare_runs(first: RunRecord, second: RunRecord) -> dict[str, Any]:
    """Compare the training configs of two runs and their results.

    `config` has the keys that differ, except the model's, with both values; `results` has each figure that either run
    has, with `delta` and `relative`. `val_loss_at_equal_tokens` is from the last evaluation that both runs made at the
    same token count.
    """
    a, b = (flatten({key: node for key, node in each.config.items() if key != "model"}) for each in (first, second))
    config = {path: {"a": a.get(path), "b": b.get(path)} for path in merge_orders([a, b]) if a.get(path) != b.get(path)}
    results = {"status": {"a": first.status, "b": second.status}}
    one, other = first.outcome, second.outcome
    results |= {name: compare_values(one[name], other[name]) for name in RESULTS}
    curves = [
        {line["tokens"]: line["val_loss"] for line in each.lines if "val_loss" in line} for each in (first, second)
    ]
    if both := set(curves[0]) & set(curves[1]):
        at = max(both)
        results["val_loss_at_equal_tokens"] = {**compare_values(curves[0][at], curves[1][at]), "tokens": at}
    return {
        "config": config,
        "results": {name: row for name, row in results.items() if row["a"] != row["b"] or row["a"] is not None},
    }
