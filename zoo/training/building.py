"""Build a run: choose and check the device, prepare the data, build the model and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data import Batches, PreparedData, prepare
from zoo.data.read_ahead import ReadAhead
from zoo.distributed.world import ALONE, World
from zoo.errors import ConfigError, collect_faults, refuse
from zoo.generation.prompt_towers import check_length
from zoo.lazy import torch
from zoo.model.init import mix_seed
from zoo.run import fp8
from zoo.run.builder import build
from zoo.run.fastest_dtype import describe_slow_dtype
from zoo.run.machine_memory import begin_peak_memory, keep_memory, read_free_memory
from zoo.run.rank import pick_rank_device
from zoo.run.recompute import set_recompute
from zoo.run.threads import ThreadWatch
from zoo.text.jobs import encode_prompt
from zoo.training.averages import MovingAverage
from zoo.training.callbacks import is_hosted
from zoo.training.device_defaults import choose_kernels, multiplies_in_tf32, settle_defaults
from zoo.training.dropout import Dropout, count_draws
from zoo.training.gradient import Autocast, WholeModel
from zoo.training.layout import ProcessGroups
from zoo.training.log import RunLog, Unwritten
from zoo.training.memory_fit import check_memory, take_share
from zoo.training.objective import Context, RecordObjective
from zoo.training.planning import TrainingPlan, describe_vocabulary_fault
from zoo.training.precision import MASTER, ComputingCopies, lower_weights
from zoo.training.restarts import is_launched
from zoo.training.run import Progress, Run, Saves
from zoo.training.run_flops import open_counter
from zoo.training.saving import open_save_world
from zoo.training.settings import TextSample, Training
from zoo.training.speed import Gauges, find_peak
from zoo.training.start.begin import StartSettings, StartWeights
from zoo.training.validation import writes

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.run.layer import Model

# ---------------------------------------------------------------- the device and the data


def prepare_device_and_data(
    planned: TrainingPlan, show: Progress, world: World
) -> tuple[TrainingPlan, Any, PreparedData]:
    """Choose the device, prepare the data, and check the model against both. Returns the plan, completed from the data
    (`TrainingPlan.learn`), the device and the data. Raises ConfigError if model, device and data do not fit one
    another."""
    device = pick_run_device(planned.settings, world)
    planned = settle_defaults(planned, device, world, show.say)
    check_run_device(planned, device, world, show.say)
    with world.main_first():
        data = prepare_data(planned, show)
    planned = planned.learn(data)
    settings, spec = planned.settings, planned.spec
    faults: list[str] = []
    collect_faults(faults, lambda: settings.objective.extend(data.tokenizer, settings.seq_len))
    if data.tokenizer.vocab_size > spec.output_vocab_size:
        faults.append(describe_vocabulary_fault(spec.output_vocab_size, data.tokenizer.vocab_size))
    if isinstance(sample := settings.sample, TextSample) and writes(spec):
        given = settings.objective.write_prompt(sample.prompt, data.template)
        try:
            ids = encode_prompt(given, data.tokenizer, data.template)
        except ConfigError as error:
            faults.append(f"sample.prompt: {error.faults[0]} (another, or sample=null)")
        else:
            collect_faults(faults, lambda: check_length(spec, len(ids), sample.tokens), "sample")
    refuse(faults)
    return planned, device, data


def pick_run_device(settings: Training, world: World) -> torch.device:
    """Choose the device of this process. Raises ConfigError for a launcher that starts no process here."""
    if settings.launcher.kind != "none" and not is_launched():
        found = f"is {settings.launcher.kind}, and neither a sweep nor a program starts processes"
        raise ConfigError(f"launcher: {found} (`zoo train` of one run does; or torchrun, and launcher=none)")
    return pick_rank_device(settings.device, world)


def check_run_device(planned: TrainingPlan, device: torch.device, world: World, say: Callable[[str], object]) -> None:
    """Warn if memory is short, or if dropout depends on the number of processes. Raises ConfigError for settings that
    cannot run on the device."""
    settings = planned.settings
    if settings.recipe:
        fp8.require_fp8(settings.recipe, device, f"precision: {settings.precision}", "precision=bf16")
    settings.optim.check_device(device)
    if line := describe_own_draws(planned, choose_kernels(planned, device), world):
        say(line)
    if settings.offload != "none" and device.type != "cuda":
        found = f"is {settings.offload}, and a run on {device.type} has them in the host's memory anyway"
        raise ConfigError(f"offload: {found} (none, or device=cuda)")
    if settings.parallel.async_tp and (device.type != "cuda" or settings.compile is not True):
        found = f"is true, and fuses products of compiled layers on CUDA, found {device.type} and compile="
        found += str(settings.compile).lower()
        raise ConfigError(f"parallel.async_tp: {found} (false, or device=cuda and compile=true)")
    free, cuda = read_free_memory(device), device.type == "cuda"
    if (line := check_memory(take_share(settings), planned.spec, free, cuda=cuda)) is not None:
        say(line)


def describe_own_draws(planned: TrainingPlan, kernels: set[str], world: World) -> str | None:
    """Return a warning if several processes drop different attention probabilities than one process would (with sdpa,
    which draws its own random numbers); None if not."""
    drops = planned.settings.dropout is not None and planned.settings.dropout.attention > 0
    if not drops or world.size == 1 or "sdpa" not in kernels:
        return None
    found = "sdpa draws by itself what it drops, otherwise than in one process"
    return f"dropout.attention: {found} (kernel=eager drops the same)"


def prepare_data(planned: TrainingPlan, show: Progress) -> PreparedData:
    """Prepare text, pairs, conversations or labelled records, whichever the objective reads."""
    objective = planned.settings.objective
    if not isinstance(objective, RecordObjective):
        prepared = prepare(planned.data, show.preparing)
        for note in prepared.notes:
            show.say(note)
        return prepared
    return objective.prepare(planned.data, planned.settings.seq_len, say=show.say, progress=show.preparing)


# ---------------------------------------------------------------- the run


def build_run(
    planned: TrainingPlan,
    folder: Path,
    device: torch.device,
    data: PreparedData,
    show: Progress,
    world: World = ALONE,
    counters: Mapping[str, Any] | None = None,
    drawings: Mapping[str, Callable[[Run], object]] | None = None,
) -> Run:
    """Build a run before its first step. All random draws follow from the seed. `counters` come from the checkpoint to
    resume from; the main process draws the `drawings` (pictures, by name) after each evaluation."""
    settings, counters = planned.settings, counters or {}
    watch = choose_computing(settings, device, show.say, counters)
    batches = open_batches(planned, data, device)
    layout = ProcessGroups.open(settings.parallel.settle(world), world, device, settings.seq_len)
    autocast = layout.autocast(device, settings)
    batches.share = (layout.rows.rank, layout.rows.size)
    free, held = settle_process(settings, device, layout.tokens.rank)
    model = build_model(planned, layout, device, show.say, fresh=not counters)
    optimizer = build_optimizer(planned, model)
    counter = open_counter(settings, planned.spec, show.say)
    if line := settings.optim.describe(device):
        show.say(line)
    return Run(
        planned=planned,
        folder=folder,
        data=data,
        batches=batches,
        model=model,
        optimizer=optimizer,
        layout=layout,
        computing=layout.open_pipeline(model, settings, device)
        or open_whole(model, settings, autocast, world, layout.rows),
        records=RunLog(folder, counters.get("lengths"), settings.objective.measures)
        if world.main
        else Unwritten(folder),
        gauges=Gauges(device, settings.arithmetic, find_peak(device, settings.arithmetic), watch, free, held),
        show=show,
        saves=Saves(open_save_world(world, settings)),
        drawings=drawings if drawings and world.main else {},
        ema=MovingAverage(settings.ema, model) if settings.ema else None,
        counter=counter,
        flops=None if counter is None else 0,
    )


def settle_process(settings: Training, device: torch.device, rank: int) -> tuple[int | None, int | None]:
    """Seed torch's generator, and let a process on a CPU keep freed memory. Returns the bytes that are free and the
    bytes that are held before the model is built, None where unknown."""
    torch.manual_seed(mix_seed(settings.seed, f"rank {rank}") if rank else settings.seed)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if multiplies_in_tf32(settings, device) else "highest")
    if device.type == "cpu" and not is_hosted():
        keep_memory()
    return read_free_memory(device), None if is_hosted() else begin_peak_memory(device)


def open_batches(planned: TrainingPlan, data: PreparedData, device: torch.device) -> Batches:
    """Open a run's stream of batches, collated by its objective. For a GPU a thread reads them ahead."""
    settings, documents = planned.settings, planned.data.apart
    one_shape = settings.compile is True or settings.recipe is not None
    context = Context(planned.spec, data.tokenizer, settings.seq_len, settings.row_seed, documents, one_shape)
    collate = settings.objective.collator(context)
    batches = Batches(data.sources, settings.batch_size, settings.seq_len, settings.row_seed, documents, collate)
    if device.type == "cuda":
        batches.ahead = ReadAhead(batches.read, pins=True)
    return batches


def build_model(
    planned: TrainingPlan, layout: ProcessGroups, device: torch.device, say: Callable[[str], object], *, fresh: bool
) -> Model:
    """Build this process's part of the model, spread over the mesh. With `fresh` the model gets its initial weights;
    else a checkpoint is read into it later."""
    settings, mesh, start = planned.settings, layout.mesh, StartSettings.of(planned.settings)
    divided = mesh.tp > 1 or mesh.ep > 1 or mesh.pp > 1
    apart = divided or mesh.shard > 1  # then no process ever holds the whole model
    streams = fresh and mesh.size == 1 and start.streams(planned.spec)
    part, where = layout.take_part(planned.spec), "meta" if apart or streams else str(device)
    model = build(part, device=where, kernel=settings.kernel, seed=settings.seed)
    set_recompute(model, settings.recompute)
    if layout.world.size == 1:
        deposit_tied_gradients(model)
    layout.divide(model, planned.spec)
    found = settle_weights(model, settings, say, fresh)
    if fresh and mesh.shard == 1:
        start.hold(model, device)
    if fresh and not apart:
        start.take_adapter(model)
    layout.lay_out(model, settings)
    if apart:
        start.complete(model.to_empty(device=device), found, device)
        if fresh:
            start.take_adapter(model)
    return model


def build_start(run: Run) -> Model:
    """Return a model with the run's starting weights: before the first step the run's own model, later a new model."""
    if not run.step:
        return run.model
    with torch.random.fork_rng():
        return build_model(run.planned, run.layout, run.device, lambda line: None, fresh=True)


def settle_weights(model: Model, settings: Training, say: Callable[[str], object], fresh: bool) -> StartWeights | None:
    """Read a `fresh` model's initial weights, freeze some, and set up float8, dropout and bfloat16. Returns the initial
    weights, if any."""
    start = StartSettings.of(settings)
    found = start.read(model, say) if fresh else None
    if settings.recipe:
        products = fp8.convert_to_fp8(model, settings.recipe)
        slow = "" if settings.compile is True else "; nothing is gained without compile=true"
        say(f"{settings.precision}: {fp8.summarize_products(products)}{slow}")
    if line := start.restrict(model, (found.equal if found else set()) if fresh else None):
        say(line)
    if settings.dropout or count_draws(model.whole):
        (settings.dropout or Dropout()).apply(model, settings.seed)
    if settings.pure:
        lower_weights(model)
    return found


def open_whole(model: Model, settings: Training, autocast: Autocast, world: World, rows: World = ALONE) -> WholeModel:
    """Set up gradient computation for a model without pipeline stages; the processes `rows` share a batch."""
    copies = ComputingCopies(model.train()) if settings.precision == MASTER and world.size == 1 else None
    return WholeModel(model, settings.objective, settings.accumulate, autocast, copies, rows)


def deposit_tied_gradients(model: Any) -> None:
    """Let the loss of a tied head add its gradient to the table's `.grad` at once, without a copy of the table. Correct
    only if gradients are computed by `backward()`, as a run does."""
    for path, tower in model.towers():
        if getattr(tower.head, "tied", False):
            model.get_submodule(f"{path}.head" if path else "head").deposits_gradients = True


def build_optimizer(planned: TrainingPlan, model: Model) -> Optimizer:
    """Build the optimizer over the trained weights. With bf16_pure its updates are rounded stochastically; with
    `offload=states` its states stay in the host's memory."""
    settings = planned.settings
    made = settings.optim.build(model, settings.parametrisation.scale(planned.spec))
    if not settings.pure and settings.offload == "none":
        return made
    from zoo.training.optim.piecewise import Beside, HostMemory, Piecewise

    place = HostMemory() if settings.offload == "states" else Beside()
    return Piecewise(made, rounds=settings.pure, by_element=settings.optim.by_element, place=place)


def choose_computing(
    settings: Training, device: torch.device, say: Callable[[str], object], counters: Mapping[str, Any]
) -> ThreadWatch:
    """Choose the number of threads, before anything is timed, and warn if the precision is slow on this device.

    A resumed run uses its checkpoint's number of threads: with another number, sums would be rounded differently.
    """
    watch = ThreadWatch(device)
    if counters:
        watch.restore(counters.get("threads", {}))
    elif choice := watch.begin():
        say(f"computes with {choice}")
    if settings.arithmetic == "bf16":
        note = describe_slow_dtype(torch.bfloat16, device, f"precision: {settings.precision}", training=True)
        if note:
            say(f"{note} (precision=fp32 would do)")
    return watch
