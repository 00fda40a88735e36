"""Read trained models as points of a scaling law: parameters, tokens, loss."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, refuse, short
from zoo.untrusted.json_file import SETTINGS, read_bytes
from zoo.untrusted.lines import read_lines
from zoo.untrusted.printable import quote, shorten

LEAST = 8
"""Fewest points to which a law with five coefficients is fitted."""

COLUMNS = ("params", "tokens", "loss")
FAULTS_SHOWN = FIELDS_SHOWN = 8
SMALLEST, LARGEST = 1e-30, 1e30
"""Bounds of every value, so that products of them are finite."""


@dataclass(frozen=True)
class LossPoints:
    """Parameters, tokens and loss of each model, in order. `runs` names the run of each point: points of one run share
    its noise. If `runs` is empty, each point is a run of its own."""

    params: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    runs: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    @classmethod
    def collect(cls, rows: Iterable[tuple[float, float, float]], runs: Iterable[str] = ()) -> LossPoints:
        """Make LossPoints from rows of (parameters, tokens, loss) and the names of their runs."""
        params, tokens, loss = zip(*given, strict=True) if (given := list(rows)) else ((), (), ())
        return cls(params, tokens, loss, tuple(runs))

    def rows(self) -> list[tuple[float, float, float]]:
        return list(zip(self.params, self.tokens, self.loss, strict=True))

    def number_runs(self) -> list[int]:
        """Number the run of each point, in the order in which runs first come."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(run, len(numbers)) for run in self.runs] or list(range(len(self)))

    def select(self, keep: Callable[[int], bool]) -> LossPoints:
        """Select the points for whose index `keep` is true."""
        kept = [at for at in range(len(self)) if keep(at)]
        rows = self.rows()
        return LossPoints.collect((rows[at] for at in kept), (self.runs[at] for at in kept if self.runs))

    def without_highest(self, count: int) -> LossPoints:
        """Drop the `count` points with the highest losses, such as those of runs that have hardly begun."""
        kept = sorted(range(len(self)), key=lambda at: self.loss[at])[: max(0, len(self) - count)]
        return self.select(set(kept).__contains__)

    def split_largest(self, count: int) -> tuple[LossPoints, LossPoints]:
        """Split off the `count` points with the most FLOPs (6·N·D): return the others, then the points split off."""
        order = sorted(range(len(self)), key=lambda at: self.params[at] * self.tokens[at])
        largest = set(order[len(self) - count :])
        return self.select(lambda at: at not in largest), self.select(largest.__contains__)


def read_points(file: Path, columns: Mapping[str, str]) -> LossPoints:
    """Read the points of a file (.csv, or .jsonl with a record a line). `columns` maps params, tokens and loss to the
    file's own names. Records of equal `run` are points of one run. Raises ConfigError with the faults."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file (points as .csv, or as lines of JSON)")
    records = _read_csv(file) if file.suffix == ".csv" else _read_lines(file)
    faults, rows = [], []
    names = [columns.get(name, name) for name in COLUMNS]
    if records and (lacking := [name for name in names if not any(name in record for _, record in records)]):
        found = _name(records[0][1]) or "nothing"
        raise ConfigError(f"{file}: has no {', no '.join(lacking)}, found {found} (--columns PARAMS,TOKENS,LOSS)")
    for place, record in records:
        row = [_read_number(record, columns.get(name, name), place, faults) for name in COLUMNS]
        rows.append((row[0], row[1], row[2]))
        if len(faults) >= FAULTS_SHOWN:
            raise ConfigError(*faults, f"{file}: reading stopped here, there may be more")
    refuse(faults)
    return LossPoints.collect(rows, (f"{file}: {record.get('run') or place}" for place, record in records))


def _read_number(record: Mapping[str, Any], column: str, place: str, faults: list[str]) -> float:
    if column not in record:
        faults.append(f"{place}: has no {column}, found {_name(record) or 'nothing'} (--columns names them)")
        return math.nan
    try:
        value = float(record[column])
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not SMALLEST < value < LARGEST or isinstance(record[column], bool):
        faults.append(f"{place}: {column} is {quote(record[column])} (a number above 0)")
    return value


def _name(record: Mapping[str, Any]) -> str:
    return ", ".join(shorten(str(each), 40) for each in list(record)[:FIELDS_SHOWN])


def _read_csv(file: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            lines = read_lines(stream, str(file), SETTINGS)
            return [(f"{file}, line {at}", row) for at, row in enumerate(csv.DictReader(lines), 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: cannot be read, found {short(error)} (a UTF-8 file of points)") from error


def _read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        lines = read_bytes(file).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read, found {short(error)} (a UTF-8 file of points)") from error
    found = []
    for at, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: a number of thousands of digits, too
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{file}, line {at}: is no record of JSON (one a line, or a .csv file)")
        found.append((f"{file}, line {at}", record))
    return found
