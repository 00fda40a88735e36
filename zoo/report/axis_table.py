"""Format the choices of an axis as a table, for a terminal and for docs/axes.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.report.wrapping import align_columns, make_bold

HEAD = ("choice", "paper", "time", "a token", "cache", "models", "families")
LEGEND = "Time of T tokens, time of one more, and what is kept for generating: how a choice itself grows with T."
SHOWN = 3
"""Maximum names in a cell."""


def format_axis(found: Iterable[Mapping[str, Any]]) -> str:
    """Format the choices of an axis for a terminal."""
    head, *lines = align_columns([HEAD, *list_rows(found)]).splitlines()
    return "\n".join([make_bold(head), *lines, LEGEND])


def list_rows(found: Iterable[Mapping[str, Any]], shown: int = SHOWN) -> list[tuple[str, ...]]:
    """List a row of texts per choice, with the columns of HEAD. A cell has at most `shown` names of models or
    families."""
    return [
        (
            *(each["choice"], each["source"], each["time"], each["token"], each["cache"]),
            *(_name_few(each[whose], shown) for whose in ("models", "families")),
        )
        for each in found
    ]


def _name_few(names: Sequence[str], shown: int) -> str:
    more = f" +{len(names) - shown}" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
