"""Format the results of a sweep's learning-rate searches, by arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo import runs

HEADER = ("arm", "best lr", "val loss", "window", "tried")
NOTE = "window: decades of rates whose loss is within 1 % of the best"


def read_searches(sweeps: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Read the learning-rate searches of sweeps, by arm; empty if there are none."""
    return {
        name: found for folder in sweeps for name, found in runs.read_sweep_record(folder).get("search", {}).items()
    }


def list_rows(searches: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """List a row per arm: the best rate, its loss, how many decades of rates are nearly as good, and the number of
    rates tried."""
    return [
        [name, f"{each['best']:g}", f"{each['val_loss']:.4f}", _describe_window(each), _describe_edge(each)]
        for name, each in searches.items()
    ]


def _describe_window(found: Mapping[str, Any]) -> str:
    return f"{'≥ ' if found['open'] else ''}{found['window']:.2f} decades"


def _describe_edge(found: Mapping[str, Any]) -> str:
    tried = f"{len(found['losses'])} rates{', extended' if found['extended'] else ''}"
    tried += f", {found['pruned']} ended early" if found.get("pruned") else ""
    return f"{tried}; the best is on the edge" if found["edge"] else tried
