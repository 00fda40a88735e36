"""Fold a pattern of layers: a repeated part is written once, with its number of repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

FEW = 200
"""Maximum number of runs of equal layers in which repeats are searched for."""


TO = "\N{EN DASH}"


class Fold(NamedTuple):
    """Runs of layers, (kind, count), repeated `times` times."""

    runs: tuple[tuple[str, int], ...]
    times: int

    def __str__(self) -> str:
        said = ", ".join(kind if count == 1 else f"{kind} × {count}" for kind, count in self.runs)
        return said if self.times == 1 else f"({said}) × {self.times}"


def fold_pattern(pattern: Sequence[str]) -> list[Fold]:
    """Fold a pattern: `a a b a a b c` is [(a×2, b×1), twice] and [(c×1), once]."""
    runs = _list_runs(pattern)
    return _fold(runs) if len(runs) <= FEW else [Fold(runs, 1)]


def _list_runs(pattern: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple((kind, len(list(run))) for kind, run in groupby(pattern))


def _fold(runs: tuple[tuple[str, int], ...]) -> list[Fold]:
    """Fold the repeat that drops most runs, then the rest on each side."""
    best = (0, 0, 0, 0)  # saved, −length, start, times
    for length in range(1, len(runs) // 2 + 1):
        for start in range(len(runs) - 2 * length + 1):
            part, times = runs[start : start + length], 1
            while runs[start + times * length : start + (times + 1) * length] == part:
                times += 1
            best = max(best, (length * (times - 1), -length, -start, times))
    saved, length, start, times = best[0], -best[1], -best[2], best[3]
    if not saved:
        return [Fold(runs, 1)] if runs else []
    end = start + length * times
    return [*_fold(runs[:start]), Fold(runs[start : start + length], times), *_fold(runs[end:])]


def name_places(pattern: Sequence[str], kind: str) -> str:
    """Format the indices of a kind's layers, from 0: `0, 4, 8 …`. A run of layers is written as its two ends."""
    said, end = [], 0
    for name, count in _list_runs(pattern):
        first, end = end, end + count
        said += [str(first) if count == 1 else f"{first}{TO}{end - 1}"] if name == kind else []
    return ", ".join(said) if len(said) <= 4 else ", ".join(said[:3]) + " …"
