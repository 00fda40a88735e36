"""Save and load Zoo's own checkpoints: safetensors, the architecture as YAML, and what training needs to resume.

A checkpoint's folder is always whole: it is written under another name, flushed to the disk and renamed.

    RUN/checkpoints/latest               the name of the newest checkpoint
    RUN/checkpoints/step-000400/
        zoo.yaml  model.safetensors      the model: `load` needs no more
        manifest.json                  bytes and hash of each file (zoo/checkpoint/manifest.py)
        tokenizer.json …                 what travels with it unchanged (zoo/checkpoint/beside.py)
        adapter.json adapter.safetensors  low-rank adapters of a run, with path and hash of their base;
                                       model.safetensors has only the weights that differ from the base's
        training.json                  of a run: its counters
        training.safetensors           of a run: states of the optimizer and of the random generators; trained weights
                                       if others are saved as the model's (schedule-free)
        ema/ lawa/                     of a run: averages of the weights, each a checkpoint of its own
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zoo.checkpoint import adapter_files, parallel_checkpoint, sentence_files
from zoo.checkpoint.beside import BESIDE, copy_beside
from zoo.checkpoint.finding import find
from zoo.checkpoint.headers import compare_shapes
from zoo.checkpoint.manifest import MANIFEST, read_sealed, seal, verify, write_manifests
from zoo.checkpoint.model_card import CARD, write_card
from zoo.checkpoint.publish import publish
from zoo.checkpoint.resume_states import (
    STATES,
    hold_states,
    open_states,
    read_part,
    restore_optimizer,
    restore_random,
)
from zoo.checkpoint.sharded import ShardedTensors, save_shards
from zoo.checkpoint.stored import StoredModel, StoredTensors
from zoo.checkpoint.tensor_files import refuse_to_replace, stream_tensors, write_tensors
from zoo.disk import replace_folder, write_text
from zoo.distributed.sharded_tensors import drop_gathered
from zoo.distributed.world import ALONE, World
from zoo.errors import CheckpointError
from zoo.families.described import CONFIG
from zoo.grammar.saved import FORMAT, check_format, read_spec, write_spec
from zoo.lazy import Tensor, nn, torch
from zoo.run.builder import pick_device, resolve_dtype
from zoo.runs import ARCHITECTURE, CHECKPOINTS, COUNTERS, WEIGHTS, read_step, steps
from zoo.spec import table

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.checkpoint.stored import WholeSpec
    from zoo.model.tower import Topology
    from zoo.run.adapters import Adapters
    from zoo.run.layer import Model

OWN = (ARCHITECTURE, MANIFEST, WEIGHTS, *adapter_files.FILES, *BESIDE)
"""Names, or glob patterns, of all files of a saved model; a folder with other files is not replaced."""


class TokenizerFiles(Protocol):
    """A tokenizer that writes its files into a folder; `limit` is the model's longest text in tokens."""

    def save(self, folder: Path, limit: int | None = None) -> None: ...


# ---------------------------------------------------------------- a model


def save_model(model: Model, folder: str | Path, tokenizer: TokenizerFiles | None = None) -> Path:
    """Write weights, architecture and tokenizer to `folder`, atomically.

    Replaces an older checkpoint. Raises CheckpointError if `folder` has any other content.
    """
    folder = Path(folder)
    refuse_to_replace(folder, "a model of ours", OWN)
    with replace_folder(folder) as draft:
        write_description(model, draft, tokenizer)
        for file, tensors in adapter_files.split_files(model, model.state_dict()).items():
            write_tensors(tensors, draft / file)
        write_manifests(draft)
    return folder


def save_stored(
    model: StoredModel,
    folder: Path,
    beside: Path,
    *,
    config: str | None = None,
    force: bool = False,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a model to `folder` as `save_model` does, tensor by tensor, with the tokenizer's files from the folder
    `beside`. With `config`, also write it as config.json, and a model card. With `force` a model that zoo did not write
    is replaced too. `check` is called with the draft before it appears. Raises CheckpointError for a tensor that is not
    finite, and if `folder` has other files."""
    names = (*OWN, CONFIG, CARD) if config is not None else OWN
    refuse_to_replace(folder, "a model of ours", names, source=beside, force=force)
    model = model.refuse_nonfinite()
    with replace_folder(folder) as draft:
        write_architecture(model.spec, draft)
        stream_tensors(model.tensors.forms, model.tensors.items(), draft / WEIGHTS)
        sentence_files.list_modules(beside)  # refuses what it cannot read
        copy_beside(beside, draft)
        if config is not None:
            write_text(draft / CONFIG, config)
        write_manifests(draft)
        if config is not None:  # after the manifest: a card may be edited
            write_card(draft, folder, model.spec, json.loads(config)["architectures"][0], beside)
        if check is not None:
            check(draft)


def write_description(model: Model, folder: Path, tokenizer: TokenizerFiles | None) -> None:
    """Write the files of a checkpoint that hold no tensors: architecture, plan of the adapters, and tokenizer."""
    write_architecture(model.whole, folder, tokenizer)
    adapter_files.write_plan(model, folder)


def write_architecture(spec: Topology, folder: Path, tokenizer: TokenizerFiles | None = None) -> None:
    """Write the architecture, and the tokenizer if there is one, into a checkpoint's folder."""
    write_spec(spec, folder)
    if tokenizer is not None:
        tokenizer.save(folder, spec.max_seq_len)


def load(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    *,
    verify: bool = True,
    adapters: Mapping[str, str | Path] | None = None,
) -> nn.Module:
    """Load the model of a checkpoint, a run's newest checkpoint, a Hugging Face folder or a GGUF file, in eval mode.
    Its own adapters are merged into its weights; `adapters` are folders of further adapters, which are not merged: each
    request of the engine chooses one by name (`zoo.checkpoint.named_adapters`).

    `dtype` defaults to the file's. If it is not given, quantised weights that have `adapters` are held as they are
    stored. With `verify`, the files of a checkpoint of Zoo are first compared with its manifest. Raises
    CheckpointError with a line for each fault, before any weight is read.
    """
    where = pick_device(device)
    stored = open_model(path, dtype, checked=verify)
    if not adapters:
        return stored.build(where)
    from zoo.checkpoint.named_adapters import add_adapters, build_packed

    model = build_packed(stored, where)
    add_adapters(model, path, adapters)
    return model


def open_model(
    path: str | Path, dtype: torch.dtype | str | None = None, *, mapped: bool = True, checked: bool = True
) -> StoredModel:
    """Open a model at any `path` that `load` takes; tensors are read lazily.

    With `mapped`, tensors that need no conversion are memory-mapped; otherwise each tensor is read into memory of its
    own, which is freed with the tensor. With `checked`, the files of a checkpoint of Zoo are compared with its
    manifest. Raises CheckpointError with a line for each fault, before any weight is read.
    """
    from zoo.checkpoint import hf

    folder = find(path)
    own = (folder / ARCHITECTURE).is_file()
    kind = None if dtype is None else resolve_dtype(dtype)
    return open_own(folder, mapped, kind, checked) if own else hf.open_model(folder, mapped, kind).cast(kind)


def open_own(folder: Path, mapped: bool, dtype: torch.dtype | None = None, checked: bool = True) -> StoredModel:
    """Open the model of a folder in Zoo's own format, with its adapters merged. Weights are merged in float32, then
    rounded to `dtype`, by default each to the dtype of the adapters' base."""
    spec, plan = read_spec(folder), adapter_files.read_plan(folder)
    adapter_files.check_weights(folder, spec)  # first: its message says more than a checksum's
    if checked:
        verify(folder)
    tensors, dtypes = open_tensors(folder, spec, plan, mapped, checked)
    if plan is not None:
        tensors = adapter_files.merge(tensors, spec, plan, folder)
    return StoredModel(spec, tensors if dtype else tensors.cast(dtypes)).cast(dtype).served


def open_tensors(
    folder: Path, spec: WholeSpec, plan: Adapters | None, mapped: bool = True, checked: bool = True
) -> tuple[StoredTensors, dict[str, torch.dtype]]:
    """Open all tensors of a checkpoint's model without its adapters: the checkpoint's own, and those of the adapters'
    base in float32. Also returns the dtypes of the base's own tensors."""
    shapes = table(spec, spec.d_model)
    found = parallel_checkpoint.open_weights(folder, mapped)
    forms = {name: form.view(shapes[name]) for name, form in found.forms.items()}  # shards store scalars as [1]
    own = StoredTensors(
        forms,
        lambda name: found[name].view(shapes[name]),
        find_slices=lambda name: found.find_slices(name) if shapes[name] else None,
    )
    if plan is None or plan.hash is None:
        return own, {}
    path = adapter_files.find_base(plan, folder)
    stated = open_model(path, mapped=mapped, checked=checked)
    base = open_model(path, torch.float32, mapped=mapped, checked=False).tensors
    lent = {name: shape for name, shape in shapes.items() if name not in own}
    compare_shapes(path, {name: tuple(base.forms[name].shape) for name in lent if name in base}, lent)
    others = dict.fromkeys(StoredModel(spec, own).list_parameters(), stated.dtype)
    dtypes = {**others, **{name: form.dtype for name, form in stated.tensors.forms.items()}}
    lent = StoredTensors(
        {name: base.forms[name] for name in shapes if name not in own}, base.read, find_slices=base.find_slices
    )
    return lent.under(own), dtypes


def load_spec(path: str | Path) -> WholeSpec:
    """Load the Spec of a model at any `path` that `load` takes; reads no weight. Raises CheckpointError for a missing
    or broken file."""
    from zoo.checkpoint import hf

    folder = find(path)
    return read_spec(folder).served if (folder / ARCHITECTURE).is_file() else hf.open_folder(folder)[0].spec


# ---------------------------------------------------------------- a run


@dataclass
class Resumable:
    """Everything that a run resumes from. `counters` is plain data, defined by the run.

    `evaluated` are weights, by name, that are evaluated in place of the trained ones (schedule-free): they are saved as
    the model's, and the trained weights with the optimizer's states. `averages` are averages of the weights by their
    name (`ema`); each becomes a checkpoint in the folder (`step-000400/ema`). Each process of `world` may hold a part
    of every tensor; with `sharded`, each writes its own part.
    """

    model: Model
    optimizer: Optimizer
    counters: dict[str, Any]
    evaluated: Mapping[str, Tensor] = field(default_factory=dict)
    averages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    world: World = ALONE
    sharded: bool = False


def save_run(
    run: Path,
    step: int,
    state: Resumable,
    tokenizer: TokenizerFiles | None,
    keep: int,
    spared: Callable[[int], bool] = lambda step: False,
) -> Path:
    """Publish the checkpoint of a step (`zoo.checkpoint.publish`), and delete older ones except the `keep` newest and
    those of steps that are `spared`. All processes of the world must call this; the main one writes."""
    folder = run / CHECKPOINTS / f"step-{step:06}"
    return CheckpointWriter(state, tokenizer).save(folder, choose_kept(keep, spared))


def start_saving(
    run: Path,
    step: int,
    state: Resumable,
    tokenizer: TokenizerFiles | None,
    keep: int,
    spared: Callable[[int], bool],
    world: World,
) -> Future[Path]:
    """Begin to save a checkpoint in shards: a thread writes and publishes the checkpoint while training goes on.
    `world` must have a process group that training does not use."""
    saved = CheckpointWriter(replace(state, world=world), tokenizer, copied=True)
    chosen = {read_step(each): spared(read_step(each)) for each in steps(run / CHECKPOINTS)}
    writer = ThreadPoolExecutor(1, thread_name_prefix="zoo-checkpoint")
    folder = run / CHECKPOINTS / f"step-{step:06}"
    done = writer.submit(saved.save, folder, choose_kept(keep, lambda step: chosen.get(step, True)))
    writer.shutdown(wait=False)
    return done


class CheckpointWriter:
    """Writes a run's checkpoint; each process may hold a part of every tensor. The main process gathers and writes the
    whole tensors or, if the state is `sharded`, each process writes its own part. With `copied`, the part is first
    copied to host memory, so that it can be written while training goes on."""

    def __init__(self, state: Resumable, tokenizer: TokenizerFiles | None, copied: bool = False) -> None:
        self.state, self.tokenizer = state, tokenizer
        parts = {parallel_checkpoint.STATE_SHARDS if state.sharded else STATES: hold_states(state)}
        for name, weights in {"": state.evaluated, **state.averages}.items():
            held = parallel_checkpoint.hold_weights(state.model, weights)
            own = {parallel_checkpoint.SHARDS: held} if state.sharded else adapter_files.split_files(state.model, held)
            parts |= {str(Path(name, file)): dict(each) for file, each in own.items()}
        if copied:
            parts = {name: {key: each.copy() for key, each in held.items()} for name, held in parts.items()}
        self.parts = parts

    def save(self, folder: Path, keeps: Callable[[list[Path]], list[Path]]) -> Path:
        """Write and publish the checkpoint. All processes must call this."""
        world = self.state.world
        if world.main:
            publish(folder, self._write, keeps)
        else:
            self._write_tensors(Path(world.broadcast("")))
        world.barrier()
        return folder

    def _write(self, draft: Path) -> None:
        for name in ("", *self.state.averages):
            (draft / name).mkdir(exist_ok=True)
            write_description(self.state.model, draft / name, self.tokenizer)
        self._write_tensors(Path(self.state.world.broadcast(str(draft))))
        write_counters(draft, self.state.counters)

    def _write_tensors(self, draft: Path) -> None:
        for name, held in self.parts.items():
            if self.state.sharded:
                save_shards(held, draft / name, self.state.world.host)
            else:
                parallel_checkpoint.write_whole(held, draft / name, self.state.world)


def choose_kept(keep: int, spared: Callable[[int], bool]) -> Callable[[list[Path]], list[Path]]:
    """Make the function that chooses which checkpoints before the newest are kept: the spared ones, and the latest
    `keep` - 1 of the others."""

    def choose(earlier: list[Path]) -> list[Path]:
        for_good = [each for each in earlier if spared(read_step(each))]
        others = [each for each in earlier if each not in for_good]
        return for_good + others[len(others) - min(keep - 1, len(others)) :]

    return choose


def write_counters(folder: Path, counters: Mapping[str, Any]) -> None:
    """Write a run's counters into a checkpoint, replacing older ones."""
    write_text(folder / COUNTERS, seal({"format": FORMAT, **counters}))


def load_run(
    folder: Path, model: Model, optimizer: Optimizer, *, random: bool = True, rank: int = 0, checked: bool = False
) -> dict[str, Any]:
    """Restore weights, optimizer and, with `random`, the random generators of process `rank` from a checkpoint. Returns
    its counters. The number of processes may differ from before: each takes its part. `checked` says that the files
    have been compared with the manifest already. Raises CheckpointError for a checkpoint that is broken, or of another
    model."""
    counters = read_counters(folder)
    spec: Any = model.whole
    adapter_files.check_weights(folder, spec)
    if not checked:
        verify(folder, training=True)
    if parallel_checkpoint.is_sharded(folder):
        ShardedTensors(folder / parallel_checkpoint.SHARDS).fill(parallel_checkpoint.hold_weights(model))
    else:
        adapters = StoredTensors.of(adapter_files.read(model, folder))
        own, _ = open_tensors(folder, spec, getattr(model, "adapters", None))
        parallel_checkpoint.fill_pieces(parallel_checkpoint.hold_weights(model), own.under(adapters))
    drop_gathered(model)
    names = {name: parameter for name, parameter in model.named_parameters()}
    states = open_states(folder)
    for name in states:
        kind, _, rest = name.partition(".")
        if kind == "random":
            place, _, owner = rest.partition("@")
            if random and int(owner or 0) == rank:
                restore_random(place, states[name])
        elif kind == "weights":
            if rest in names:
                parallel_checkpoint.fill_pieces(
                    {name: parallel_checkpoint.locate(model.shares, rest, names[rest])}, states
                )
        elif (owner := rest.rpartition("/")[0]) in names:
            value = read_part(states, name, model.shares, owner, names[owner])
            restore_optimizer(optimizer, names[owner], rest.rpartition("/")[2], value)
    return counters


def read_counters(folder: Path) -> dict[str, Any]:
    """Read the counters of a run's checkpoint. Raises CheckpointError if it has none, or they are damaged."""
    file = folder / COUNTERS
    try:
        counters = read_sealed(file, dict[str, Any])
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: a model alone, no run goes on from it (a checkpoint of a run)") from None
    check_format(file, counters.get("format"))
    return counters
