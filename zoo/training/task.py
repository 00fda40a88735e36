"""Start and resume training runs: check the config, prepare the data, build the model, train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zoo import grammar, runs
from zoo.checkpoint import store
from zoo.checkpoint.whole import leave_behind
from zoo.data import Batches, Prepared, copy_tokenizer, prepare, refuse_old_position
from zoo.disk import remove_drafts
from zoo.errors import ConfigError, ZooError, short
from zoo.generation.towers import check_length
from zoo.lazy import torch
from zoo.model.init import initialise, mix_seed
from zoo.ranks.meeting import join_processes
from zoo.ranks.world import ALONE, World, read_world
from zoo.report.page import PAGE, add_environment
from zoo.run import fp8
from zoo.run.builder import build, pick_device
from zoo.run.dtypes import describe_slow_dtype
from zoo.run.environment import describe_environment
from zoo.run.memory import begin_peak_memory, keep_memory, read_free_memory
from zoo.run.recompute import set_recompute
from zoo.run.threads import ThreadWatch, keep_threads
from zoo.training import settings as S
from zoo.training.averages import MovingAverage
from zoo.training.callbacks import is_hosted
from zoo.training.dropout import Dropout, count_draws
from zoo.training.failures import failures_in_one_line
from zoo.training.fitting import advise, check_memory, take_share
from zoo.training.flops import count_run_parameters
from zoo.training.kernels import choose_kernels, describe_own_draws
from zoo.training.layout import Layout
from zoo.training.log import METRICS, PICTURE, SAMPLES, Records, Unwritten
from zoo.training.loggers import open_relay
from zoo.training.loop import Run, draw_last_page, fit
from zoo.training.objective import Auto, Context, Labelled
from zoo.training.objective.base import describe
from zoo.training.outcome import find_output_folder, write_result, write_yaml
from zoo.training.planning import (
    CONFIG,
    MODEL,
    TrainingPlan,
    collect_faults,
    describe_vocabulary_fault,
    plan_resumption,
    plan_training,
)
from zoo.training.precision import MASTER, Computing, lower_weights
from zoo.training.restarts import describe_restart, has_checkpoint, is_launched, note_choice
from zoo.training.resuming import refuse_other_run, tell_checkpoint
from zoo.training.sampling import choose_sampling_kernel, describe_silence, writes
from zoo.training.saving import open_save_world, restore_counters, tidy_checkpoints
from zoo.training.show import Show
from zoo.training.speed import find_peak
from zoo.training.start.begin import Start


def start_run(cfg: DictConfig, folder: str | Path | None = None) -> dict[str, Any]:
    """Train from a composed config in Hydra's output folder, or in another one. Returns what result.json holds.

    Raises ConfigError with every fault found, before anything is written; ZooError when the training fails.
    """
    planned, world = plan_training(cfg), read_world()
    show = Show(planned.settings.steps, quiet=not world.main)
    join_processes(world, pick_device(planned.settings.device).type)
    with ExitStack() as held:
        told, begins = world.tell((str(folder or find_output_folder()), True) if world.main else None)
        if not begins:  # the main process has found its own run there (`rejoin_run`)
            return resume_run(told, typed=cfg)
        where = Path(told)
        held.enter_context(failures_in_one_line(where))
        held.enter_context(keep_threads())
        refuse_second_run(where)
        return begin_run(planned, where, show, world, held)


def begin_run(planned: TrainingPlan, folder: Path, show: Show, world: World, held: ExitStack) -> dict[str, Any]:
    """Train a run from its first step in a folder that has no checkpoint. `held` keeps the folder locked."""
    Start.of(planned.settings).check(planned.spec)
    planned, device, data = prepare_device_and_data(planned, show, world)
    if world.main:
        held.enter_context(runs.locked(folder, show.say))
        refuse_second_run(folder)  # another process may have had the folder meanwhile
    if again := describe_restart():
        show.say(f"{again}starts anew, as there is no checkpoint yet")
    run = build_run(planned, folder, device, data, show, world)
    if world.main:
        copy_tokenizer(planned.data, folder / runs.TOKENIZER)
        write_yaml(folder / CONFIG, planned.config)
        write_yaml(folder / MODEL, grammar.to_dict(planned.spec))
    return complete_run(run, planned)


def resume_run(folder: str | Path, overrides: Sequence[str] = (), typed: DictConfig | None = None) -> dict[str, Any]:
    """Resume a run from its newest whole checkpoint, or from that of a step (`RUN@400`, `RUN@best`). On a CPU the
    losses are bit-identical to those of an unstopped run. A run without a checkpoint starts from its beginning.

    That holds while the number of threads stays: a run goes on with its checkpoint's, and says when it takes another
    (`zoo.run.threads`); OMP_NUM_THREADS holds it. What starts programs comes from the `overrides`, or from the config
    that this process has composed (`typed`), never from the folder.

    Raises ConfigError when no step is left, or when the data has changed.
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
        refuse_old_position(counters["data"])
        planned, device, data = prepare_device_and_data(planned, show, world)
        if data.key != (was := counters["data"]["key"]):
            raise ConfigError(f"{folder}: its data is not what it was, found {data.key} (was {was})")
        run = build_run(planned, folder, device, data, show, world, counters)
        restore_run(run, checkpoint)
        if world.main and leave_behind(checkpoint, show.say):
            show.say(f"goes back to step {run.step}: metrics and samples of later steps are cut off")
        note_choice(folder, which)
        tidy_checkpoints(run)
        if world.main:
            write_yaml(folder / CONFIG, planned.config)
        show.say(f"{describe_restart()}goes on after step {run.step}")
        return complete_run(run, planned)


def rejoin_run(folder: Path, typed: DictConfig) -> dict[str, Any]:
    """Go on with this launch's own run after a restart, which has `typed` its config. The main process alone knows that
    it is one, and tells the others, which have come to `start_run`. Raises FinishedRun where no step is left."""
    planned, world = plan_resumption(folder, [], typed), read_world()
    join_processes(world, pick_device(planned.settings.device).type)
    world.tell((str(folder), False))
    return resume_run(folder, typed=typed)


def refuse_second_run(folder: Path) -> None:
    """Raise ConfigError when a folder has a run in it already."""
    if has_checkpoint(folder):
        raise ConfigError(f"{folder}: has a run in it (`zoo train --resume {folder}` goes on with it, or name another)")


# ---------------------------------------------------------------- checks


def prepare_device_and_data(planned: TrainingPlan, show: Show, world: World) -> tuple[TrainingPlan, Any, Prepared]:
    """Pick the device, prepare the data, and check the model against both. Returns the plan with what the data decides,
    the device and the data. Raises ConfigError."""
    if planned.settings.launcher.kind != "none" and not is_launched():
        found = f"is {planned.settings.launcher.kind}, and neither a sweep nor a program starts processes"
        raise ConfigError(f"launcher: {found} (`zoo train` of one run does; or torchrun, and launcher=none)")
    device = pick_device(planned.settings.device)
    if device.type == "cuda" and world.size > 1:
        device = pick_device(f"cuda:{world.local_rank}")
    if recipe := planned.settings.recipe:
        fp8.require_fp8(recipe, device, f"precision: {planned.settings.precision}", "precision=bf16")
    planned.settings.optim.check_device(device)
    if line := describe_own_draws(planned, choose_kernels(planned, device), world):
        show.say(line)
    if planned.settings.offload != "none" and device.type != "cuda":
        found = f"is {planned.settings.offload}, and a run on {device.type} has them in the host's memory anyway"
        raise ConfigError(f"offload: {found} (none, or device=cuda)")
    free, cuda = read_free_memory(device), device.type == "cuda"
    if (line := check_memory(take_share(planned.settings), planned.spec, free, cuda=cuda)) is not None:
        show.say(line)
    with world.main_first():
        data = prepare_data(planned, show)
    planned = planned.learn(data)
    faults: list[str] = []
    collect_faults(faults, lambda: planned.settings.objective.extend(data.tokenizer, planned.settings.seq_len))
    if data.tokenizer.vocab_size > planned.spec.output_vocab_size:
        faults.append(describe_vocabulary_fault(planned.spec.output_vocab_size, data.tokenizer.vocab_size))
    if isinstance(sample := planned.settings.sample, S.TextSample) and writes(planned.spec):
        ids = data.tokenizer.encode(sample.prompt) or [data.tokenizer.eos_id]
        collect_faults(faults, lambda: check_length(planned.spec, len(ids), sample.tokens), "sample")
    if faults:
        raise ConfigError(*faults)
    return planned, device, data


def prepare_data(planned: TrainingPlan, show: Show) -> Prepared:
    """Prepare text, pairs or labelled records, as the objective reads them."""
    objective = planned.settings.objective
    if not isinstance(objective, Labelled):
        return prepare(planned.data, show.preparing)
    from zoo.data.labelled import prepare_labelled

    how = {"limit": planned.settings.seq_len, "opens": objective.pools_first}
    task, known = objective.make_task(), getattr(objective, objective.shared[0])
    return prepare_labelled(planned.data, task, known, **how, say=show.say, progress=show.preparing)


# ---------------------------------------------------------------- from a plan to an outcome


def build_run(
    planned: TrainingPlan,
    folder: Path,
    device: Any,
    data: Prepared,
    show: Show,
    world: World = ALONE,
    counters: Mapping[str, Any] | None = None,
) -> Run:
    """Build a run before its first step. Everything random is drawn from the seed. `counters` are those of the
    checkpoint that a run goes on from."""
    settings = planned.settings
    watch = choose_computing(settings, device, show, counters)
    documents = planned.data.documents
    one_shape = settings.compile is True or settings.recipe is not None
    collate = settings.objective.collator(
        Context(planned.spec, data.tokenizer, settings.seq_len, settings.seed, documents, one_shape)
    )
    batches = Batches(data.sources, settings.batch_size, settings.seq_len, settings.seed, documents, collate)
    mesh = settings.parallel.settle(world)
    layout = Layout.open(mesh, world, device, settings.seq_len)
    rows = layout.rows
    batches.share = (rows.rank, rows.size)
    apart_by = layout.tokens.rank
    torch.manual_seed(mix_seed(settings.seed, f"rank {apart_by}") if apart_by else settings.seed)
    if device.type == "cpu" and not is_hosted():
        keep_memory()
    free, held = read_free_memory(device), None if is_hosted() else begin_peak_memory(device)
    divided = mesh.tp > 1 or mesh.ep > 1 or mesh.pp > 1
    apart = divided or (mesh.shard > 1 and settings.weights is None)  # then no process ever has the whole model
    spec = layout.take_part(planned.spec)
    model = build(spec, device="meta" if apart else str(device), kernel=settings.kernel, seed=settings.seed)
    set_recompute(model, settings.recompute)
    if world.size == 1:
        deposit_tied_gradients(model)
    start = Start.of(settings)
    layout.divide(model, planned.spec)
    if divided and settings.weights:
        initialise(model.to_empty(device=device), settings.seed)
        apart = False
    if counters is None:
        start.read(model, show.say)
    if settings.recipe:
        products = fp8.convert_to_fp8(model, settings.recipe)
        slow = "" if settings.compile is True else "; nothing is gained without compile=true"
        show.say(f"{settings.precision}: {fp8.summarize_products(products)}{slow}")
    if line := start.restrict(model):
        show.say(line)
    if settings.dropout or count_draws(model.whole):
        (settings.dropout or Dropout()).apply(model, settings.seed)
    if settings.pure:
        lower_weights(model)
    layout.lay_out(model, settings.precision)
    if apart:
        initialise(model.to_empty(device=device), settings.seed)
    optimizer = build_optimizer(planned, model)
    if line := settings.optim.describe(device):
        show.say(line)
    return Run(
        name=planned.name,
        folder=folder,
        settings=settings,
        data=data,
        batches=batches,
        model=model,
        optimizer=optimizer,
        records=Records(folder, (counters or {}).get("lengths"), settings.objective.measures)
        if world.main
        else Unwritten(folder),
        show=show,
        peak=find_peak(device, settings.arithmetic),
        watch=watch,
        world=world,
        row_world=rows,
        token_world=layout.tokens,
        save_world=open_save_world(world, settings),
        pipeline=layout.open_pipeline(model, settings, device),
        computing=Computing(model.train()) if settings.precision == MASTER and world.size == 1 else None,
        ema=MovingAverage(settings.ema, model) if settings.ema else None,
        free=free,
        held=held,
        flops=0 if all(each.requires_grad for each in model.parameters()) else None,
    )


def deposit_tied_gradients(model: Any) -> None:
    """Let the losses of tied heads add their gradients to the tables' own: `backward()` is all that a run calls."""
    for path, tower in model.towers():
        if getattr(tower.head, "tied", False):
            model.get_submodule(f"{path}.head" if path else "head").deposits_gradients = True


def build_optimizer(planned: TrainingPlan, model: Any) -> Any:
    """Build the optimizer over the weights that train: one that rounds them where they are bfloat16, and keeps its
    states where they belong."""
    settings = planned.settings
    made = settings.optim.build(model, settings.parametrisation.scale(planned.spec))
    if not settings.pure and settings.offload == "none":
        return made
    from zoo.training.optim.piecewise import Beside, HostMemory, Piecewise

    place = HostMemory() if settings.offload == "states" else Beside()
    return Piecewise(made, rounds=settings.pure, by_element=settings.optim.by_element, place=place)


def choose_computing(
    settings: S.Training, device: Any, show: Show, counters: Mapping[str, Any] | None = None
) -> ThreadWatch:
    """Choose the number of threads, before anything is timed, and say where the precision asked for is slow.

    A run that goes on has the threads of its checkpoint, as another number adds floats up in another order.
    """
    watch = ThreadWatch(device)
    if counters:
        watch.restore(counters.get("threads", {}))
    elif choice := watch.begin():
        show.say(f"computes with {choice}")
    if settings.arithmetic == "bf16":
        note = describe_slow_dtype(torch.bfloat16, device, f"precision: {settings.precision}", training=True)
        if note:
            show.say(f"{note} (precision=fp32 would do)")
    return watch


def restore_run(run: Run, checkpoint: Path) -> None:
    """Restore a run's state from a checkpoint."""
    counters = store.load_run(checkpoint, run.model, run.optimizer, rank=run.world.rank, checked=True)
    if run.ema is not None:
        run.ema.restore(checkpoint / "ema", run.model.shares)
    restore_counters(run, counters)


def complete_run(run: Run, planned: TrainingPlan) -> dict[str, Any]:
    """Train to the end and write the outcome, also when it is a failure."""
    settings = run.settings
    params, _ = count_run_parameters(run)
    spread = f", over {run.world.size} processes" if run.world.size > 1 else ""
    what = f"{params:,} parameters on {run.device} in {settings.precision}{spread}"
    size = f"{settings.steps:,} steps of {settings.batch_size * settings.seq_len:,} tokens"
    run.show.say(f"{run.name}: {what}, {size}; MFU of {run.peak}")
    if planned.config.get("objective", {}).get("kind") == Auto.kind:
        run.show.say(f"objective: {settings.objective.kind}, as the model is {describe(planned.spec)}")
    if isinstance(settings.sample, S.TextSample) and not writes(planned.spec):
        run.show.say(f"sample: none, as the model is {describe_silence(planned.spec)}, which writes no text")
    elif isinstance(settings.sample, S.TextSample):
        _, line = choose_sampling_kernel(run.model.spec, settings, run.device)
        if line is not None:
            run.show.say(line)
    if settings.objective.reads_labels and (line := describe_sample_of_rows(run)):
        run.show.say(line)
    if not run.world.main:
        return fit(run)
    add_environment(run.folder, describe_environment(run.device))
    status, cuda = "failed", run.device.type == "cuda"
    try:
        run.records.relay = open_relay(settings.logger, run.folder, planned.config, run.step, run.show.say)
        with failures_in_one_line(run.folder, lambda: advise(take_share(settings), planned.spec, run.free, cuda=cuda)):
            result = fit(run)
        status = "done"
    except (ZooError, KeyboardInterrupt) as error:
        status = "failed" if isinstance(error, ZooError) else "stopped"
        note_failure(run, status, error)
        raise
    finally:
        run.records.close(status)
        run.watch.end()
    write_result(run.folder, {"error": None, **result})
    draw_last_page(run, "done")
    run.show.say(f"{run.folder}: {PAGE}, checkpoints, {PICTURE}, {METRICS}, {SAMPLES}")
    return result


def note_failure(run: Run, status: str, error: BaseException) -> None:
    """Write how a run ended into its folder, where that is still there."""
    if not run.folder.is_dir():  # it was deleted, as the error says
        return
    try:
        write_result(run.folder, {"status": status, "error": str(error), "run": str(run.folder), "steps": run.step})
        draw_last_page(run, status)
    except OSError as second:  # the disk that is full is often the reason for the first
        run.show.say(f"{run.folder / runs.RESULT}: cannot be written, found {short(second)}")


def describe_sample_of_rows(run: Run) -> str | None:
    """Say how many labelled rows evaluations take, where that is not all."""
    taken = sum(len(batch.input_ids) for held in run.held_out for batch in held.batches)
    there = sum(source.tokens.n_documents for source in run.data.held_out)
    return None if taken == there else f"evaluates on {taken:,} of {there:,} rows (eval_batches=null: on all)"
