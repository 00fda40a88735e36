"""Choose the checkpoint that a run resumes from, the newest whole one, and report why newer ones were skipped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from zoo.checkpoint import adapter_files, parallel_checkpoint
from zoo.checkpoint.manifest import verify
from zoo.checkpoint.publish import point
from zoo.checkpoint.resume_states import open_states
from zoo.checkpoint.store import read_counters
from zoo.checkpoint.stored import find_nonfinite
from zoo.errors import CheckpointError
from zoo.grammar.saved import read_spec
from zoo.runs import CHECKPOINTS, LATEST, find_step, follow, is_file, read_step, steps

TRAINED = "weights."
"""Prefix of the names of trained weights in a run's states, if others are saved as the model's (schedule-free)."""

LEFT = "left"
"""Suffix of the name of a checkpoint that a run left behind by resuming from an older one."""


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A whole checkpoint, its counters, and a line for each newer one that is not whole."""

    folder: Path
    counters: dict[str, Any]
    passed: tuple[str, ...] = ()


def choose_checkpoint(
    run: Path, which: str, check: Callable[[Path, dict[str, Any]], object]
) -> ChosenCheckpoint | None:
    """Choose the checkpoint that a run resumes from: the step or pointer (`best`) that `which` names, else the newest
    whole checkpoint up to `latest`; None if the run has none yet. `check` raises for invalid counters.

    Raises CheckpointError if the named checkpoint, or every one, is not whole.
    """
    root = run / CHECKPOINTS
    if which:
        folder = find_step(root, int(which)) if which.isdigit() else follow(root, which)
        return ChosenCheckpoint(folder, check_whole(folder, check))
    there, passed = steps(root)[::-1], []
    if is_file(root / LATEST):
        try:
            newest = follow(root, LATEST)
            there = [each for each in there if read_step(each) <= read_step(newest)]
        except CheckpointError as error:
            passed += error.faults
    for folder in there:
        try:
            return ChosenCheckpoint(folder, check_whole(folder, check), tuple(passed))
        except CheckpointError as error:
            passed.append(error.faults[0])
    if passed:
        raise CheckpointError(*passed, f"{run}: has no whole checkpoint (a copy of one; or a new run)")
    return None


def check_whole(folder: Path, check: Callable[[Path, dict[str, Any]], object]) -> dict[str, Any]:
    """Return a checkpoint's counters. Raises CheckpointError unless its files are unchanged and its weights finite."""
    counters = read_counters(folder)
    check(folder, counters)
    adapter_files.check_weights(folder, read_spec(folder))
    verify(folder, training=True)
    refuse_nonfinite(folder)
    return counters


def refuse_nonfinite(folder: Path) -> None:
    """Raise CheckpointError naming the first weight, saved as the model's or among the states, that is not finite."""
    weights, states = parallel_checkpoint.open_weights(folder), open_states(folder)
    trained = ((name.removeprefix(TRAINED), states[name]) for name in states if name.startswith(TRAINED))
    for name, tensor in chain(((name, weights[name]) for name in weights), trained):
        if what := find_nonfinite(tensor):
            raise CheckpointError(f"{folder}: {name} {what} (an earlier checkpoint: --resume RUN@STEP)")


def leave_behind(chosen: Path, say: Callable[[str], object]) -> bool:
    """Point `latest` at the checkpoint that a run resumes from, and rename the checkpoints of later steps, which belong
    to an abandoned course of the run. If `latest` names this checkpoint already, later ones keep their names: an
    earlier call renamed them, or the process was killed before `latest` named them. Returns whether `latest` was
    changed."""
    root = chosen.parent
    try:
        if is_file(root / LATEST) and follow(root, LATEST) == chosen:
            return False
    except CheckpointError:  # `latest` names a checkpoint that is gone
        pass
    point(root, LATEST, chosen)
    for later in (each for each in steps(root) if read_step(each) > read_step(chosen)):
        target, number = later.with_name(f"{later.name}-{LEFT}"), 1
        while target.exists():
            target, number = later.with_name(f"{later.name}-{LEFT}-{number + 1}"), number + 1
        os.rename(later, target)
        say(f"{later}: is left behind, as {target.name} (delete it if nobody needs it)")
    return True
