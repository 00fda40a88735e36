"""Choose what a run goes on from, and refuse a folder that it cannot go on in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo import runs
from zoo.checkpoint.whole import ChosenCheckpoint, choose_checkpoint
from zoo.errors import CheckpointError, ConfigError, FinishedRun
from zoo.grammar.saved import read_spec
from zoo.ranks.world import World
from zoo.training.log import APPENDED, NONFINITE
from zoo.training.planning import CONFIG, TrainingPlan
from zoo.training.restarts import settle_choice
from zoo.training.saving import check_counters
from zoo.untrusted.paths import find_inside


def tell_checkpoint(folder: Path, which: str, world: World) -> ChosenCheckpoint | None:
    """Choose the checkpoint that a run goes on from (`choose_checkpoint`). The main process reads it, and tells the
    others. Raises CheckpointError in each."""
    found: Any = None
    if world.main:
        try:
            refuse_faulty_files(folder)
            found = choose_checkpoint(folder, settle_choice(folder, which), check_counters)
        except CheckpointError as error:
            found = error
    found = world.tell(found)
    if isinstance(found, CheckpointError):
        raise found
    return found


def refuse_faulty_files(folder: Path) -> None:
    """Raise CheckpointError where a run's folder has files that cannot be read, or links that lead out of it: what is
    written there would replace what they lead to."""
    for parent, names, files in os.walk(folder):
        for each in (Path(parent, name) for name in (*names, *files)):
            if each.is_symlink():
                find_inside(folder, str(each.relative_to(folder)), str(folder))
    for name in (*APPENDED, NONFINITE, runs.PAGE, runs.PICTURE, CONFIG, runs.RESULT):
        if (folder / name).exists() and not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is no file, and the run writes one there (a file, or nothing)")
    runs.read_result(folder / runs.RESULT)
    runs.read_environments(folder)
    runs.read_lines(folder / runs.METRICS)


def refuse_other_run(planned: TrainingPlan, folder: Path, checkpoint: Path, counters: Mapping[str, Any]) -> None:
    """Raise ConfigError when the checkpoint has another model than the config, or when it is of the last step."""
    if read_spec(checkpoint) != planned.spec:
        raise ConfigError(f"{folder / CONFIG}: model: is not the one of {checkpoint} (as it was when the run began)")
    step, due = counters["step"], counters.get("evaluation_due")
    if step >= planned.settings.steps and not due and runs.read_result(folder / runs.RESULT).get("status") == "done":
        more = f"steps={2 * step} goes on with it, or any above {step}"
        raise FinishedRun(f"{folder}: is finished, found a checkpoint of step {step} ({more})")
