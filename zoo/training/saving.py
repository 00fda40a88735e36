"""Save a run's checkpoints: when, which are kept, and the counters to resume from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from zoo.checkpoint import store
from zoo.checkpoint.publish import point, retire
from zoo.distributed.world import HOST_TIMEOUT, World
from zoo.errors import CheckpointError, ZooError
from zoo.lazy import Tensor
from zoo.runs import BEST, CHECKPOINTS, COUNTERS, read_step, steps
from zoo.training.averages import average_checkpoints
from zoo.training.callbacks import tell
from zoo.training.finite import refuse_nonfinite, refuse_nonfinite_weights
from zoo.training.log import find_record
from zoo.training.metric_lines import settle_steps
from zoo.training.run import Run
from zoo.training.settings import Training
from zoo.training.start.begin import StartSettings
from zoo.untrusted.json_file import JsonShape, check_shape
from zoo.untrusted.run_types import Count, Number

Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]


def open_save_world(world: World, settings: Training) -> World:
    """Return the run's processes as a world. Asynchronous checkpoints get a separate process group."""
    if world.size == 1 or settings.checkpoint != "async":
        return world
    from torch import distributed

    return World(world.rank, world.size, world.local_rank, distributed.new_group(backend="gloo", timeout=HOST_TIMEOUT))


def find_checkpoint(run: Run, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run.folder / CHECKPOINTS / f"step-{step:06}"


# ---------------------------------------------------------------- writing


def save_if_due(run: Run, terms: dict[str, Any]) -> None:
    """Save a checkpoint if one is due after this step, by the config or the schedule. After the last step a checkpoint
    is always due.

    If this step's update was skipped, the checkpoint waits for the next update that succeeds, unless this is the last
    step. Bad weights may be the cause, and their checkpoint would replace an older one.
    """
    run.saves.due |= run.due(run.settings.save_every) or is_milestone(run, run.step)
    if not run.saves.due:
        return
    settle_steps(run)
    if not run.skipped_in_row or run.step == run.settings.steps:
        save_checkpoint(run, terms)


def save_checkpoint(run: Run, terms: dict[str, Any] | None = None, also: frozenset[int] = frozenset()) -> None:
    """Write a checkpoint of this step, unless it exists already; checkpoints of the steps `also` are kept too. Raises
    ZooError for values that are not finite."""
    saves, settings = run.saves, run.settings
    saves.due = False
    if saves.step == run.step:
        return
    finish_saving(run)
    settle_steps(run)
    if terms is not None:
        refuse_nonfinite(run, terms)
    refuse_nonfinite_weights(run)
    averages = (find_optimizer_average(run), compute_averages(run))
    state = store.Resumable(
        run.model,
        run.optimizer,
        gather_counters(run),
        *averages,
        run.world,
        settings.checkpoint in ("sharded", "async"),
    )
    where = (run.folder, run.step, state, run.data.tokenizer, settings.keep, partial(is_spared, run, also=also))
    saves.step = run.step
    if settings.checkpoint == "async":
        saves.writing = store.start_saving(*where, saves.world)
    else:
        tell(run, "on_save", store.save_run(*where))


def finish_saving(run: Run) -> None:
    """Wait for an asynchronous save. Raises its error, if any."""
    writing, run.saves.writing = run.saves.writing, None
    if writing is not None:
        tell(run, "on_save", writing.result())


def is_milestone(run: Run, step: int) -> bool:
    """Whether the schedule requires the checkpoint after `step` updates to be written and never deleted."""
    return run.settings.schedule.is_milestone(step, run.settings.steps)


def is_spared(run: Run, step: int, also: frozenset[int] = frozenset()) -> bool:
    """Whether a checkpoint is kept regardless of how many newer ones there are."""
    return step in also or is_milestone(run, step) or any(step == kept for _, kept in run.saves.best)


# ---------------------------------------------------------------- averages


def compute_averages(run: Run) -> dict[str, Mapping[str, Tensor]]:
    """Compute the averaged weights (`ema`, `lawa`), by name. A checkpoint stores each in a separate folder."""
    found: dict[str, Mapping[str, Tensor]] = {}
    if run.ema is not None:
        found["ema"] = run.ema.weights
    if run.settings.lawa is not None:
        earlier = [each for each in steps(run.folder / CHECKPOINTS) if read_step(each) < run.step]
        found["lawa"] = average_checkpoints(earlier[1 - run.settings.lawa :], run.model)
    return found


def find_optimizer_average(run: Run) -> dict[str, Tensor]:
    """Return the weights, by name, that are evaluated in place of the trained ones (schedule-free's average); {} for
    most optimizers. A checkpoint stores them as its model, and the trained weights with the optimizer's states."""
    find = getattr(run.optimizer, "evaluation_weights", None)
    found = {} if find is None else find()
    return {name: found[each] for name, each in run.model.named_parameters() if each in found}


# ---------------------------------------------------------------- the best


def keep_if_best(run: Run) -> None:
    """If this step's evaluation is among the `keep_best` best so far, save the step, and point `best` at the best one.
    The best has the lowest validation loss, or the largest value of the objective's `ranked_by`.

    Replaced checkpoints are deleted last, so that `best` never points at a missing one.
    """
    rank, most, best = rank_evaluation(run), run.settings.keep_best, run.saves.best
    finish_saving(run)
    if not most or run.evaluation_due or not math.isfinite(rank):
        return
    ranked = sorted([*(each for each in best if each[1] != run.step), (rank, run.step)])[:most]
    if (rank, run.step) in ranked:
        run.saves.best = ranked
        save_checkpoint(run, also=frozenset(step for _, step in best))
        point_at_best(run)


def rank_evaluation(run: Run) -> float:
    """Rank the newest evaluation; lower is better."""
    metric = run.settings.objective.ranked_by
    return run.last.get("val_loss", math.nan) if metric is None else -run.last.get(metric, math.nan)


def note_evaluation(run: Run) -> None:
    """Note in this step's checkpoint, if any, that the evaluation is done; then delete replaced checkpoints."""
    finish_saving(run)
    if run.saves.step == run.step and run.world.main:
        newest = find_checkpoint(run, run.step)
        store.write_counters(newest, gather_counters(run))
        retire(newest, store.choose_kept(run.settings.keep, partial(is_spared, run)))


def point_at_best(run: Run) -> None:
    """Point `best` at the checkpoint with the best evaluation; remove `best` if no checkpoint is kept as a best one."""
    if not run.world.main:
        return
    root = run.folder / CHECKPOINTS
    if run.saves.best:
        point(root, BEST, find_checkpoint(run, run.saves.best[0][1]))
    else:
        (root / BEST).unlink(missing_ok=True)


# ---------------------------------------------------------------- resuming


def restore_run(run: Run, checkpoint: Path) -> None:
    """Restore a run's state from a checkpoint."""
    counters = store.load_run(checkpoint, run.model, run.optimizer, rank=run.world.rank, checked=True)
    if run.layout.mesh.shard == 1:
        StartSettings.of(run.settings).hold(run.model, run.device)
    if run.ema is not None:
        run.ema.restore(checkpoint / "ema", run.model.shares)
    restore_counters(run, counters)


def go_back_if_due(run: Run) -> None:
    """Restore an earlier checkpoint's weights and states if the schedule starts the next update from them; the data
    continues. Whether it is due depends on the step alone, so a resumed run does the same. Raises ZooError if the
    earlier checkpoint is gone."""
    before = run.settings.schedule.goes_back_to(run.step, run.settings.steps)
    if before is None:
        return
    folder = find_checkpoint(run, before)
    if not folder.is_dir():
        raise ZooError(f"{folder}: is not there, and the run goes on from it after a decay (schedule.continue_from)")
    store.load_run(folder, run.model, run.optimizer, random=False)
    if run.ema is not None:
        run.ema.restore(folder / "ema", run.model.shares)
    run.show.say(f"goes on after step {run.step} from the weights of step {before}, before the decay")


def tidy_checkpoints(run: Run) -> None:
    """Finish the clean-up that a process killed while saving left undone."""
    if run.world.main:
        point_at_best(run)
        retire(find_checkpoint(run, run.step), store.choose_kept(run.settings.keep, partial(is_spared, run)))


def gather_counters(run: Run) -> dict[str, Any]:
    """Gather the counters that a run resumes from. `lengths` has the sizes of its files, which are flushed to disk."""
    return {
        "step": run.step,
        "tokens": run.tokens,
        "flops": run.flops,
        "processes": run.world.size,
        "seconds": run.gauges.clock.seconds,
        "last": run.last,
        "details": run.details,
        "means": run.means.state(),
        "evaluation_due": run.evaluation_due,
        "data": {**run.batches.state(), "key": run.data.key},
        "lengths": run.records.lengths(),
        "threads": run.gauges.watch.state(),
        "skipped": run.skipped,
        "skipped_in_row": run.skipped_in_row,
        "best": run.saves.best,
        "compiled": run.compiled,
    }


def restore_counters(run: Run, counters: Mapping[str, Any]) -> None:
    """Set a run's progress from a checkpoint's counters."""
    run.batches.restore(counters["data"])
    run.step = run.saves.step = counters["step"]
    run.tokens, run.last = counters["tokens"], counters["last"]
    run.details = counters.get("details", {})
    run.flops = counters.get("flops")
    run.gauges.clock.seconds = counters["seconds"]
    run.means.restore(counters.get("means", {}))
    run.evaluation_due = counters.get("evaluation_due", False)
    run.skipped, run.skipped_in_row = counters.get("skipped", 0), counters.get("skipped_in_row", 0)
    run.compiled = counters.get("compiled", False) if run.settings.compile == "auto" else None
    run.saves.best = [(rank, step) for rank, step in counters.get("best", [])]


class RowState(JsonShape):
    """The rows that a run has consumed. `zoo.data.refuse_old_position` refuses an older version's count."""

    key: str
    consumed: Count | None = None


class ThreadState(JsonShape):
    """The number of threads, and the best pace of the run so far, in tokens per second."""

    threads: Annotated[int, Field(ge=1, lt=1 << 20)]
    best_pace: Number


class Counters(JsonShape):
    """The schema of the result of `gather_counters`."""

    step: Count
    tokens: Count
    flops: Count | None = None
    processes: Annotated[int, Field(ge=1, lt=1 << 20)] | None = None
    seconds: Number
    last: dict[str, Number | None]
    means: dict[str, Pair] = Field(default_factory=dict)
    evaluation_due: bool = False
    data: RowState
    lengths: dict[str, Count]
    threads: ThreadState | Annotated[dict[str, Any], Field(max_length=0)] = Field(default_factory=dict)
    skipped: Count = 0
    skipped_in_row: Count = 0
    best: list[Pair] = Field(default_factory=list)
    compiled: bool | None = None


def check_counters(checkpoint: Path, counters: Mapping[str, Any]) -> None:
    """Check the counters of a checkpoint before use. Raises CheckpointError if they are damaged or of another step."""
    file = checkpoint / COUNTERS
    check_shape(counters, Counters, str(file))
    if f"step-{counters['step']:06}" != checkpoint.name:
        raise CheckpointError(f"{file}: step: is {counters['step']}, and the folder is {checkpoint.name} (one step)")
    for name in counters["lengths"]:
        find_record(checkpoint.parent.parent, name)
