"""Predict from a run's priced memory whether the run fits on its device, and propose changes that make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.costs.again import RECOMPUTE, mark_layers, read_every
from zoo.costs.memory import training
from zoo.costs.params import count_parameters
from zoo.costs.train_peak import CHUNK
from zoo.costs.transient import GenerationShape, measure_peaks
from zoo.costs.tuning import TunedSetup, Tuning
from zoo.costs.zero_shards import widths
from zoo.errors import ConfigError
from zoo.model.loss import BLOCK, LARGE_BLOCK
from zoo.run.fp8 import MULTIPLE
from zoo.training.dropout import RATES
from zoo.training.mesh_settings import find_world
from zoo.training.precision import PURE, find_priced
from zoo.training.settings import Training
from zoo.training.start.begin import StartSettings

if TYPE_CHECKING:
    from zoo.costs.setup import Setup
    from zoo.model.tower import Topology

EVERY = (4, 3, 2)
"""The n of `recompute=every_n` (one layer in n is recomputed), in the order proposed: least work first."""

Changes = Mapping[str, str]
"""Settings by name, as typed on the command line."""


def take_share(settings: Training) -> Training:
    """Return the settings as one process sees them: `batch_size` counts only this process's rows."""
    size = settings.parallel.settle(find_world(settings)).rows
    return dataclasses.replace(settings, batch_size=settings.batch_size // size) if size > 1 else settings  # type: ignore[type-var]


def check_memory(settings: Training, spec: Topology, free: int | None, *, cuda: bool = True) -> str | None:
    """Compare the priced memory of a step with the free bytes. If the step does not fit, returns a line with changes
    that would make it fit.

    Raises ConfigError if weights, gradients and the optimizer's states, which are counted exactly, do not fit.
    Activations may be some percent off, so they only give a warning. With `cuda` CUDA's kernels are priced.
    """
    if free is None:
        return None
    figures = price_training(settings, spec, settings.batch_size // settings.accumulate, cuda=cuda)
    if (states := figures["states"]) > free:
        found = f"weights, gradients and states take {gigabytes(states)}, found {gigabytes(free)} free"
        raise ConfigError(f"model: does not fit into memory, {found} ({advise_states(settings, spec, free, cuda)})")
    peak = figures["peak"]
    if peak is None or peak <= free:
        return None
    advice = advise(settings, spec, free, cuda=cuda)
    return f"memory: a step takes about {gigabytes(peak)}, {gigabytes(free)} are free ({advice})"


def advise_states(settings: Training, spec: Topology, free: int, cuda: bool) -> str:
    """Name changes that would make weights, gradients and states fit."""
    ways = list_lighter_states(settings, cuda)
    for changes in [*ways, {name: value for each in ways for name, value in each.items()}]:
        if changes and (found := price_training(settings, spec, 1, cuda=cuda, **changes)["states"]) <= free:
            return f"{spell(changes)} takes {gigabytes(found)}; or a smaller model"
    return "a smaller model, or an optimizer with fewer"


def advise(settings: Training, spec: Topology, free: int | None, *, cuda: bool = True) -> str:
    """Name changes that make the run fit into the memory that was free before the model was built: more microbatches,
    recomputation of activations, optimizer states in the host's memory or in 16 bits, or several of these if none is
    enough alone. Without a price, name settings that need less memory."""
    size, now = settings.batch_size, settings.batch_size // settings.accumulate
    finer = list_finer(settings)
    if free is None or price_training(settings, spec, 1, cuda=cuda)["peak"] is None:
        less = "recompute=full" if settings.recompute != "full" else "a shorter seq_len"
        if not finer:
            return f"{less}, a smaller batch_size or a smaller model"
        return f"accumulate={finer[0]} takes {size // finer[0]} of {now} rows at a time, or {less}"
    fits = list(find_fitting(settings, spec, free, cuda=cuda))
    if not fits:
        return f"a shorter seq_len or a smaller model: one row of {settings.seq_len} tokens does not fit either"
    first, *others = fits
    verb = "fit" if "," in first.changes else "fits"
    needs = f"{first.rows} of {now} rows at a time need {gigabytes(first.peak)}, {gigabytes(free)} were free"
    also = ", ".join(each.changes for each in others)
    also = f"; so {'do' if len(others) > 1 else 'does'} {also}" if others else ""
    return f"{first.changes} {verb}: {needs}{also}"


class MemoryFit(NamedTuple):
    """Changes that make a run fit into memory, the rows of a microbatch after the changes, and the peak in bytes."""

    changes: str
    rows: int
    peak: int


def find_fitting(settings: Training, spec: Topology, free: int, *, cuda: bool) -> Iterator[MemoryFit]:
    """Yield each single change that makes the run fit: the fewest microbatches, which cost hardly any time; the least
    recomputation; lighter states. If no single change suffices, yield the first sufficient combination, if any."""
    now, found = settings.batch_size // settings.accumulate, False
    again, lighter = list_recomputation(settings, spec), list_lighter_states(settings, cuda)
    parts = [{"accumulate": str(count)} for count in list_finer(settings)]
    for ways in (parts, again, *([way] for way in lighter)):
        for changes in ways:
            if fit := try_changes(settings, spec, free, cuda, changes):
                found = True
                yield fit
                break
    if found:
        return
    rest = [{}, *lighter, {name: value for each in lighter for name, value in each.items()}]
    for more in rest:
        for part in parts or [{"accumulate": str(settings.batch_size // now)}]:
            for changes in again or [{}]:
                if fit := try_changes(settings, spec, free, cuda, {**part, **changes, **more}):
                    yield fit
                    return


def try_changes(settings: Training, spec: Topology, free: int, cuda: bool, changes: Changes) -> MemoryFit | None:
    """Price a run with some settings changed; None if it does not fit."""
    others = dict(changes)
    parts = int(others.pop("accumulate", settings.accumulate))
    rows = settings.batch_size // parts
    peak = price_training(settings, spec, rows, cuda=cuda, **others)["peak"]
    stated = {name: value for name, value in changes.items() if value != str(getattr(settings, name))}
    return MemoryFit(spell(stated), rows, peak) if peak is not None and peak <= free and stated else None


def spell(changes: Changes) -> str:
    """Write changes as typed on the command line."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def list_finer(settings: Training) -> list[int]:
    """List the numbers of microbatches above the present one that a batch can be split into."""
    size = settings.batch_size
    found = [parts for parts in range(settings.accumulate + 1, size + 1) if size % parts == 0]
    return [parts for parts in found if not settings.recipe or size // parts * settings.seq_len % MULTIPLE == 0]


def list_recomputation(settings: Training, spec: Topology) -> list[Changes]:
    """List settings that recompute more activations than the run does, least work first."""
    names = ["none", "selective", *(f"every_{each}" for each in EVERY), "full"]
    every = read_every(settings.recompute)
    after = names.index(settings.recompute) if settings.recompute in RECOMPUTE else 1
    found = [name for name in names[after + 1 :] if every is None or (read_every(name) or 1) < every]
    if settings.compile is True:
        found = [name for name in found if name != "selective"]
    return [{"recompute": name} for name in found if has_layers_for(name, spec)]


def has_layers_for(recompute: str, spec: Topology) -> bool:
    """Whether a model has enough layers for a value of `recompute`: at least n for `every_n`."""
    try:
        mark_layers(spec, recompute)
    except ConfigError:
        return False
    return True


def list_lighter_states(settings: Training, cuda: bool) -> list[Changes]:
    """List settings that make the optimizer's states lighter: states in the host's memory, which does not change
    results; then states and weights in 16 bits, which rounds."""
    if settings.optim.whole_step is not None:
        return []
    found: list[Changes] = [{"offload": "states"}] if cuda and settings.offload == "none" else []
    return [*found, {"precision": PURE}] if not settings.pure and not settings.recipe else found


# ---------------------------------------------------------------- the price


def price_training(settings: Training, spec: Any, rows: int, *, cuda: bool = True, **changes: str) -> dict[str, Any]:
    """Price the memory of a step with `rows` rows in a microbatch, in bytes. `peak` is None if the model's activations
    are unknown. `states` sums weights, gradients and the optimizer's states, which do not depend on the rows. Both
    include a moving average of the weights.

    Counts adapters, dropout's masks and accumulated gradients, but no gradients or states of frozen weights. Counts
    only this process's part of sharded weights. `changes` replace settings of the run: recompute, offload, precision.
    """
    mesh = settings.parallel.settle(find_world(settings))
    setup = TunedSetup(
        tuning=partial(describe_tuning, settings),
        context=settings.seq_len,
        batch=rows * settings.objective.n_texts,
        accumulate=settings.batch_size // rows,
        precision=find_priced(changes.get("precision", settings.precision)),
        recompute=changes.get("recompute", settings.recompute),
        offload=changes.get("offload", settings.offload),
        optimizer=settings.optim.kind,
        decay=settings.optim.decay,
        fused_optimizer=True,
        chunked_loss=True,
    ).on_mesh(mesh)
    found = training(spec, setup, fused=cuda)
    average = (
        0 if settings.ema is None else 4 * found["gradients"] // widths(setup)[1]
    )  # float32 for each trained weight
    peak = found.get("train_peak")
    states = sum(found[name] for name in ("weights", "gradients", "optimizer")) + average
    teachers, forward, beside = price_teachers(settings, setup, mesh.shard, cuda=cuda)
    if peak is not None:
        peak = max(peak + average + beside, states + forward) + teachers
    return {"peak": peak, "states": states + teachers}


def price_teachers(settings: Training, setup: Setup, shards: int, *, cuda: bool) -> tuple[int, int, int]:
    """Price the teachers of a run, in bytes of one process: their float32 weights; the peak of their forward pass,
    which ends before the model's begins; and their loss during the model's pass (hidden states, a chunk of logits, five
    blocks of a softmax; `TeacherLoss`)."""
    weights = forward = beside = 0
    for spec in settings.objective.list_teachers():
        tokens, decoder = setup.batch * setup.tokens(spec), [*spec.towers().values()][-1]
        weights += 4 * count_parameters(spec)["total"] // shards
        passes = measure_peaks(spec, GenerationShape(setup.tokens(spec), setup.batch, "fp32", fused=cuda))
        forward = max(forward, passes.encode, passes.prefill)
        logits, block = 4 * tokens * decoder.head.n_logits, LARGE_BLOCK if cuda else BLOCK["cpu"]
        beside += 4 * tokens * decoder.d_model + min(logits, CHUNK) + 5 * min(logits, block)
    return weights, forward, beside


def describe_tuning(settings: Training, spec: Topology) -> Tuning:
    """Return the Tuning that pricing needs: which weights train, and what adapters and dropout add to a pass."""
    drops = frozenset(name for name in RATES if settings.dropout and getattr(settings.dropout, name))
    return dataclasses.replace(StartSettings.of(settings).describe_tuning(spec), drops=drops)


def gigabytes(size: int) -> str:
    """Write bytes as GB, or as MB below 0.1 GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
