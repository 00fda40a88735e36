"""Start and resume training runs: check the config, prepare the data, build and train the run, write its outcome."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from zoo import grammar, runs
from zoo.checkpoint.beside import GENERATION
from zoo.checkpoint.newest_checkpoint import ChosenCheckpoint, choose_checkpoint, leave_behind
from zoo.data import PreparedData, refuse_old_position
from zoo.data.chat.template import ChatTemplate
from zoo.data.cut_rows import name_length
from zoo.data.tokenizer import Tokenizer
from zoo.disk import remove_drafts, write_text
from zoo.distributed.meeting import join_processes
from zoo.distributed.world import ALONE, World, read_world
from zoo.errors import CheckpointError, ConfigError, FinishedRun, ZooError, short
from zoo.families.config_types import GenerationFile
from zoo.families.described import read_json
from zoo.grammar.saved import read_spec
from zoo.report.history import RunRecord
from zoo.report.progress import Show
from zoo.report.run_page import write_page
from zoo.report.runplot import draw_losses
from zoo.run.builder import pick_device
from zoo.run.environment import describe_environment
from zoo.run.threads import keep_threads
from zoo.training.building import build_run, open_batches, prepare_device_and_data
from zoo.training.decoded import RowPiece, decode_row, describe_row
from zoo.training.failures import FORESEEN, failures_in_one_line
from zoo.training.log import APPENDED, NONFINITE
from zoo.training.loggers import open_relay
from zoo.training.loop import fit
from zoo.training.memory_fit import advise, take_share
from zoo.training.objective import Auto, RecordObjective
from zoo.training.objective.base import describe
from zoo.training.planning import CONFIG, MODEL, TrainingPlan, plan_resumption, plan_training
from zoo.training.restarts import describe_restart, has_checkpoint, note_choice, settle_choice
from zoo.training.run import Run
from zoo.training.run_flops import count_parameters_of
from zoo.training.saving import check_counters, restore_run, tidy_checkpoints
from zoo.training.settings import TextSample
from zoo.training.start.begin import StartSettings
from zoo.training.start.other_tokenizer import keep_files
from zoo.training.usual_rate import describe_high_rate
from zoo.training.validation import choose_sampling_kernel, describe_silence, writes
from zoo.untrusted.stated_paths import find_inside


def start_run(cfg: DictConfig, folder: str | Path | None) -> dict[str, Any]:
    """Train from a composed config in `folder`, which the main process states and the others (None) are told. Returns
    the data of result.json.

    Raises ConfigError with every fault found, before anything is written, and ZooError if the training fails.
    """
    planned, world = plan_training(cfg), read_world()
    show = Show(planned.settings.steps, quiet=not world.main)
    join_processes(world, pick_device(planned.settings.device).type)
    with ExitStack() as held:
        told, begins = world.broadcast((str(folder), True) if world.main else None)
        if not begins:  # the main process has found this launch's own run in the folder (`rejoin_run`)
            return resume_run(told, typed=cfg)
        where = Path(told)
        held.enter_context(failures_in_one_line(where))
        held.enter_context(keep_threads())
        refuse_second_run(where)
        return begin_run(planned, where, show, world, held)


def begin_run(planned: TrainingPlan, folder: Path, show: Show, world: World, held: ExitStack) -> dict[str, Any]:
    """Train a run from its first step in a folder that has no checkpoint. `held` keeps the folder locked."""
    start = StartSettings.of(planned.settings)
    start.check(planned.spec, planned.data.tokenizer, show.say)
    planned, device, data = prepare_device_and_data(planned, show, world)
    if world.main:
        held.enter_context(runs.locked(folder, show.say))
        refuse_second_run(folder)  # another process may have used the folder before the lock
    if again := describe_restart():
        show.say(f"{again}starts anew, as there is no checkpoint yet")
    run = build_run(planned, folder, device, data, show, world, drawings=DRAWINGS)
    if planned.data.written:
        trained, held_out = (sum(each.tokens.n_documents for each in part) for part in (data.sources, data.held_out))
        show.say(
            f"data: {trained:,} {planned.data.content} train and {held_out:,} validate (a repeated one counts once)"
        )
    first = run.batches.read(0, 1)
    show.say(describe_row(first, planned.settings.objective.list_learned(first)[0], data.tokenizer))
    if world.main:
        kept, template = folder / runs.TOKENIZER, data.tokenizer.template
        keep_files(planned.data.tokenizer, start.weights, kept)
        if template is not None and kept.is_dir():  # where a resumed run reads it
            write_text(kept / runs.TEMPLATE, template)
        planned.settings.objective.keep_files(kept, planned.spec)
        keep_ends(data.tokenizer, kept, data.template)
        write_yaml(folder / CONFIG, planned.config)
        write_yaml(folder / MODEL, grammar.to_dict(planned.spec))
    return complete_run(run)


def keep_ends(tokenizer: Tokenizer, folder: Path, template: ChatTemplate | None) -> None:
    """Write to the run's generation_config.json every token that ends a text: the tokenizer's end of text, and the
    token that the data's `template` puts after an answer. A file that has them all is left unchanged. Without a
    template no file is needed, because config.json names the end of text."""
    if not folder.is_dir():
        return
    learned = [*(template.find_end(tokenizer)[0] if template else ()), tokenizer.eos_id]
    file = folder / GENERATION
    stated = read_json(file, GenerationFile) if file.is_file() else {}
    known = stated.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    missing = [token for token in dict.fromkeys(learned) if token not in known]
    if missing and (stated or template):
        write_text(file, json.dumps({**stated, "eos_token_id": [*known, *missing]}, indent=2) + "\n")


def decode_first_rows(cfg: DictConfig, count: int) -> list[list[RowPiece]]:
    """Prepare a run's data, and decode its first `count` training rows, without repeats. Only the cache of tokens is
    written. Raises ConfigError as a run does."""
    planned = plan_training(cfg)
    show = Show(planned.settings.steps)
    planned, device, data = prepare_device_and_data(planned, show, ALONE)
    for line in describe_cut_rows(planned, data):
        show.say(line)
    batches = open_batches(planned, data, device)
    found = ((number, batches.read(number, 1)) for number in batches.list_first(count))
    return [
        decode_row(batch, row, data.tokenizer, batches.count_cut(number))
        for number, batch in found
        for row in planned.settings.objective.list_learned(batch)
    ]


def resume_run(folder: str | Path, overrides: Sequence[str] = (), typed: DictConfig | None = None) -> dict[str, Any]:
    """Resume a run from its newest whole checkpoint, or from a chosen one (`RUN@400`, `RUN@best`). A run without a
    checkpoint starts from the beginning.

    On a CPU, losses are bit-identical to those of an uninterrupted run if the number of threads is the same. A resumed
    run takes the number of threads in its checkpoint, and prints a line if it must take another (`zoo.run.threads`);
    OMP_NUM_THREADS fixes the number. Settings that start programs are read from the `overrides`, or from the config
    that this process has composed (`typed`), never from the folder. Raises ConfigError if no step is left or the data
    has changed.
    """
    (folder, which), world = runs.split_choice(folder), read_world()
    planned = plan_resumption(folder, overrides, typed)
    show = Show(planned.settings.steps, quiet=not world.main)
    join_processes(world, pick_device(planned.settings.device).type)
    with ExitStack() as held:
        held.enter_context(failures_in_one_line(folder))
        held.enter_context(keep_threads())
        if world.main:
            held.enter_context(runs.locked_for_launch(folder, show.say))
        for note in planned.notes:
            show.say(note)
        chosen = tell_checkpoint(folder, which, world)
        if chosen is None:
            show.say(f"{folder}: has no checkpoint yet, and starts from the beginning with its own config")
            if world.main:
                remove_drafts(folder / runs.CHECKPOINTS)
            return begin_run(planned, folder, show, world, held)
        checkpoint, counters = chosen.folder, chosen.counters
        for line in chosen.passed:
            show.say(f"passed over: {line}")
        refuse_other_run(planned, folder, checkpoint, counters)
        if line := describe_other_count(checkpoint, counters, world):
            show.say(line)
        refuse_old_position(counters["data"])
        planned, device, data = prepare_device_and_data(planned, show, world)
        if data.key != (was := counters["data"]["key"]):
            raise ConfigError(f"{folder}: its data is not what it was, found {data.key} (was {was})")
        run = build_run(planned, folder, device, data, show, world, counters, DRAWINGS)
        restore_run(run, checkpoint)
        if world.main and leave_behind(checkpoint, show.say):
            show.say(f"goes back to step {run.step}: metrics and samples of later steps are cut off")
        note_choice(folder, which)
        tidy_checkpoints(run)
        if world.main:
            write_yaml(folder / CONFIG, planned.config)
        show.say(f"{describe_restart()}goes on after step {run.step}")
        return complete_run(run)


def rejoin_run(folder: Path, typed: DictConfig) -> dict[str, Any]:
    """Resume this launch's own run after a restart; `typed` is the run's config. Called in the main process, which
    broadcasts the folder to the other processes: these wait in `start_run`. Raises FinishedRun if no step is left."""
    planned, world = plan_resumption(folder, [], typed), read_world()
    join_processes(world, pick_device(planned.settings.device).type)
    world.broadcast((str(folder), False))
    return resume_run(folder, typed=typed)


def refuse_second_run(folder: Path) -> None:
    """Raise ConfigError if a folder has a run with a checkpoint."""
    if has_checkpoint(folder):
        raise ConfigError(f"{folder}: has a run in it (`zoo train --resume {folder}` goes on with it, or name another)")


# ---------------------------------------------------------------- what a run goes on from


def tell_checkpoint(folder: Path, which: str, world: World) -> ChosenCheckpoint | None:
    """Choose the checkpoint from which to resume (`choose_checkpoint`). The main process reads the checkpoint and
    broadcasts the choice. Raises CheckpointError, in every process, for faulty files or a missing checkpoint."""
    found: Any = None
    if world.main:
        try:
            refuse_faulty_files(folder)
            found = choose_checkpoint(folder, settle_choice(folder, which), check_counters)
        except CheckpointError as error:
            found = error
    found = world.broadcast(found)
    if isinstance(found, CheckpointError):
        raise found
    return found


def refuse_faulty_files(folder: Path) -> None:
    """Raise CheckpointError if a run's folder has unreadable files, or links that lead out of the folder: the run would
    overwrite the links' targets."""
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
    """Raise ConfigError if the checkpoint's model is not the config's, and FinishedRun if the run has no steps left."""
    if read_spec(checkpoint) != planned.spec:
        raise ConfigError(f"{folder / CONFIG}: model: is not the one of {checkpoint} (as it was when the run began)")
    step, due = counters["step"], counters.get("evaluation_due")
    if step >= planned.settings.steps and not due and runs.read_result(folder / runs.RESULT).get("status") == "done":
        more = f"steps={2 * step} goes on with it, or any above {step}"
        raise FinishedRun(f"{folder}: is finished, found a checkpoint of step {step} ({more})")


def describe_other_count(checkpoint: Path, counters: Mapping[str, Any], world: World) -> str | None:
    """Describe that a run resumes with another number of processes than its checkpoint was written by; None if the
    number is the same, or unknown because an older version wrote the checkpoint."""
    was = counters.get("processes") or world.size
    if was == world.size:
        return None
    cure = "torchrun, or launcher=torchrun nproc=…, starts as many as before"
    return f"{checkpoint}: a run of {was} processes, which goes on with {world.size} ({cure})"


# ---------------------------------------------------------------- from its first step to its outcome


def complete_run(run: Run) -> dict[str, Any]:
    """Train a built run to its end, and write its outcome, also of a failure. Returns the data of result.json."""
    if (kept := run.folder / runs.TOKENIZER).is_dir():
        run.data.tokenizer.files = kept
    describe_run(run)
    if not run.world.main:
        return fit(run)
    runs.add_environment(run.folder, describe_environment(run.device))
    planned, status = run.planned, "failed"
    share, free, cuda = take_share(planned.settings), run.gauges.free, run.device.type == "cuda"
    try:
        run.records.relay = open_relay(planned.settings.logger, run.folder, planned.config, run.step, run.show.say)
        with failures_in_one_line(run.folder, lambda: advise(share, planned.spec, free, cuda=cuda)):
            result = fit(run)
        status = "done"
    except (ZooError, KeyboardInterrupt) as error:
        status = getattr(error, "status", "failed") if isinstance(error, ZooError) else "stopped"
        note_failure(run, status, error)
        raise
    finally:
        run.records.close(status)
        run.gauges.watch.end()
    write_result(run.folder, {"error": None, **result})
    draw_last_page(run, "done")
    run.show.say(f"{run.folder}: {runs.PAGE}, checkpoints, {runs.PICTURE}, {runs.METRICS}, {runs.SAMPLES}")
    return result


def describe_run(run: Run) -> None:
    """Print the run's size and device, and the settings chosen for the model or the device."""
    planned, settings, say = run.planned, run.settings, run.show.say
    params, _ = count_parameters_of(run.model, settings)
    spread = f", over {run.world.size} processes" if run.world.size > 1 else ""
    what = f"{params:,} parameters on {run.device} in {settings.precision}{spread}"
    size = f"{settings.steps:,} steps of {settings.batch_size * settings.objective.n_texts * settings.seq_len:,} tokens"
    say(f"{run.name}: {what}, {size}, {settings.optim.kind} at {settings.optim.lr:g}; MFU of {run.gauges.peak}")
    if planned.config.get("objective", {}).get("kind") == Auto.kind:
        why = f"data is of {planned.data.content}" if planned.data.written else f"model is {describe(planned.spec)}"
        say(f"objective: {settings.objective.kind}, as the {why}")
    if not run.step and (line := describe_high_rate(settings, params)) is not None:
        say(line)
    sampled = isinstance(settings.sample, TextSample)
    if sampled and not writes(planned.spec):
        say(f"sample: none, as the model is {describe_silence(planned.spec)}, which writes no text")
    elif sampled and (line := choose_sampling_kernel(run.model.spec, settings, run.device)[1]) is not None:
        say(line)
    for line in describe_cut_rows(planned, run.data):
        say(line)
    if isinstance(settings.objective, RecordObjective) and (line := describe_sample_of_rows(run)):
        say(line)


def describe_cut_rows(planned: TrainingPlan, data: PreparedData) -> Iterator[str]:
    """Yield lines on training documents that are truncated or left out."""
    settings, spec = planned.settings, planned.spec
    cure = name_length("seq_len=", spec.max_seq_len)
    for source in data.sources:
        of = f" of {source.name}" if source.name else ""
        cuts = settings.objective.describe_cuts(spec, source.tokens, of, settings.seq_len, cure)
        yield from (f"data: {line}" for line in cuts)


def note_failure(run: Run, status: str, error: BaseException) -> None:
    """Write the status and error of a run that failed or stopped into its folder, if that still exists."""
    if not run.folder.is_dir():  # deleted, which caused the error
        return
    try:
        write_result(run.folder, {"status": status, "error": str(error), "run": str(run.folder), "steps": run.step})
        draw_last_page(run, status)
    except OSError as second:  # a full disk is often the cause of both
        run.show.say(f"{run.folder / runs.RESULT}: cannot be written, found {short(second)}")


def describe_sample_of_rows(run: Run) -> str | None:
    """Describe how many labelled rows an evaluation reads; None if it reads all."""
    taken = sum(len(batch.input_ids) for held in run.held_out for batch in held.batches)
    there = sum(source.tokens.n_documents for source in run.data.held_out)
    return None if taken == there else f"evaluates on {taken:,} of {there:,} rows (eval_batches=null: on all)"


# ---------------------------------------------------------------- what is drawn


def draw_picture(run: Run) -> None:
    draw_losses(run.records.lines, run.name, run.folder / runs.PICTURE)


def draw_page(run: Run) -> None:
    """Write the page of the run so far."""
    write_page(RunRecord(run.folder), "running")


DRAWINGS = {"picture": draw_picture, "page": draw_page}
"""The functions that draw after each evaluation, by their names in messages."""


def draw_last_page(run: Run, status: str) -> None:
    """Write the page of a run that ended. A failure to write is only printed, because the run itself is complete."""
    try:
        write_page(RunRecord(run.folder), status)
    except FORESEEN as error:
        run.show.say(f"{run.folder / runs.PAGE}: cannot be written, found {short(error)}")


# ---------------------------------------------------------------- a run's own small files


def write_yaml(file: Path, node: object) -> None:
    """Write plain data as YAML. Lists and mappings without nested ones are written inline, wrapped at 120
    characters."""
    write_text(file, yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120))


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Update result.json. Other keys of an existing file stay, such as the overrides with which the run was started."""
    file = folder / runs.RESULT
    before = runs.read_whole_result(file)
    merged = {key: value for key, value in {**before, **result}.items() if value is not None}
    write_text(file, json.dumps(merged, indent=2) + "\n")
