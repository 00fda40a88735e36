"""Fold a pattern of layers: a repeated part is written once, with its number of repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FEW = 200
"""Maximum number of runs of equal layers in which repeats are searched for."""


TO = "\N{EN DASH}"


class Fold(NamedTuple):
    """Runs of layers, (kind, count), repeated `times` times."""

    runs: tuple[tuple[str, int], ...]
    times: int


def fold_pattern(pattern: Sequence[str]) -> list[Fold]:
    """Fold a pattern: `a a b a a b c` is [(a×2, b×1), twice] and [(c×1), once]."""
    runs: list[tuple[str, int]] = []
    for kind in pattern:
        if runs and runs[-1][0] == kind:
            runs[-1] = kind, runs[-1][1] + 1
        else:
            runs.append((kind, 1))
    return _fold(tuple(runs)) if len(runs) <= FEW else [Fold(tuple(runs), 1)]


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
    places = [at for at, name in enumerate(pattern) if name == kind]
    ranges: list[list[int]] = []
    for at in places:
        if ranges and ranges[-1][1] == at - 1:
            ranges[-1][1] = at
        else:
            ranges.append([at, at])
    said = [str(first) if first == last else f"{first}{TO}{last}" for first, last in ranges]
    return ", ".join(said) if len(said) <= 4 else ", ".join(said[:3]) + " …"
