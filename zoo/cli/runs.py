"""`zoo runs`: list the runs in a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import report
from zoo.cli.options import argument, flag, option
from zoo.cli.showing import Json
from zoo.errors import ConfigError
from zoo.untrusted.printable import escape_controls, shorten

FOLDERS = ("runs", "sweeps")


def run(
    folder: Path | None = argument("A folder with runs below it. [default: runs and sweeps here]"),
    sort: str = option("The column to sort by: when, val_loss, params, …", default="when"),
    reverse: bool = flag("Reverse the order: largest or latest first."),
    as_json: Json = False,
) -> None:
    """List runs: the overrides in which they differ, model, parameters, tokens, losses, status, last update.

    A run is done, failed, stopped (it can be resumed), running, or cut off: its process died.
    A run whose files cannot be read is listed as unreadable, with the reason.
    """
    from zoo.cli.common import print_note
    from zoo.report.history import collect_runs, find_runs, list_rows, sort_rows

    if folder is not None:
        root, records = folder, collect_runs([folder])
    else:
        root, records = Path(), [each for name in FOLDERS for each in find_runs(Path(name))]
        if not records:
            raise ConfigError("folder: there are no runs here (`zoo train` makes one, or name a folder with some)")
    listed, faults = list_rows(records, root)
    for fault in faults:
        print_note(fault)
    rows = sort_rows(listed, sort, reverse)
    if as_json:
        print(report.format_json(rows))
        return
    names = _name_by_folder(rows)
    cells = [_cells(row, names[row["path"]]) for row in rows]
    header, cells = report.fit_columns(*report.drop_empty(HEADER, cells), EXPENDABLE)
    right = [at for at, name in enumerate(header) if name in NUMBERS]
    report.print_tables(report.make_table("", header, cells, right=right))


HEADER: tuple[str, ...] = (
    "run",
    "overrides",
    "model",
    "params",
    "steps",
    "tokens",
    "loss",
    "val loss",
    "score",
    "status",
    "when",
)
NUMBERS = HEADER[3:9]
MOST_WORDS = 120
"""Maximum characters of a run's overrides in the table; `--json` has all of them."""
SCORES = ("val_f1", "val_mrr", "val_pearson", "val_reward_accuracy")
"""The metrics that the column `score` can show. If a run has several, the first in this order is shown."""
EXPENDABLE = ("model", "loss", "tokens", "params", "steps", "when")
"""Columns that are left out on a narrow screen, in this order."""


def _name_by_folder(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Map each run's path to a name: the overrides that not all runs of its folder share, or all of its overrides if it
    is alone in the folder."""
    import textwrap

    from zoo.report.arms import name_runs

    folders: dict[Path, list[Mapping[str, Any]]] = {}
    for row in rows:
        folders.setdefault(Path(row["path"]).parent, []).append(row)
    names: dict[str, str] = {}
    for own in folders.values():
        words = [row["overrides"] for row in own]
        found = name_runs(words if len(own) > 1 else [*words, []])
        names |= {row["path"]: name for row, name in zip(own, found, strict=False)}
    return {path: textwrap.shorten(name, MOST_WORDS, placeholder=" …") for path, name in names.items()}


def _cells(row: Mapping[str, Any], overrides: str) -> list[str]:
    from zoo.report.history import MEASURES

    def show(name: str, form: Callable[[Any], str]) -> str:
        value = row[name]
        if isinstance(value, float) and not math.isfinite(value):
            return "diverged"
        return "" if value is None else form(value)

    score = next((name for name in SCORES if row[name] is not None), None)
    return [
        escape_controls(row["name"]),
        escape_controls(overrides),
        show("model", shorten),
        show("params", report.format_count),
        show("steps", "{:,}".format),
        show("tokens", report.format_count),
        show("train_loss", "{:.4f}".format),
        show("val_loss", "{:.4f}".format),
        "" if score is None else f"{MEASURES[score]} {row[score]:.4f}",
        row["status"],
        row["when"][:16],
    ]
