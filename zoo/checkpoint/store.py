"""Save and load our own checkpoints: safetensors, the architecture as YAML, and what training needs to resume.

A checkpoint's folder is always whole: it is written under another name, flushed to the disk and renamed.

    RUN/checkpoints/latest               the name of the newest checkpoint
    RUN/checkpoints/step-000400/
        zoo.yaml  model.safetensors      the model: `load` needs no more
        tokenizer.json …                 its tokenizer, where it has one
        adapter.json adapter.safetensors  of a run with low-rank adapters: these, beside weights without them
        training.json                  of a run: its counters
        training.safetensors           of a run: states of the optimizer and of the random generators; trained weights
                                       where the model is saved with others (schedule-free)
        ema/ lawa/                     of a run: averages of the weights, each a checkpoint of its own
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo.checkpoint import adapters, spread
from zoo.checkpoint.files import BESIDE, read_header, refuse_to_replace, write_tensors
from zoo.checkpoint.publish import publish, retire
from zoo.disk import replace_folder, write_text
from zoo.errors import CheckpointError, short
from zoo.grammar import to_dict
from zoo.grammar.saved import FORMAT, check_format, read_spec
from zoo.lazy import torch
from zoo.ranks.shards import Shares, drop_gathered
from zoo.ranks.world import ALONE, World
from zoo.run.builder import build, pick_device, resolve_dtype
from zoo.runs import ARCHITECTURE, CHECKPOINTS, WEIGHTS, find, read_step, steps
from zoo.spec import table

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

COUNTERS, STATES = "training.json", "training.safetensors"


# ---------------------------------------------------------------- a model


def save_model(model: Any, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write weights, architecture and tokenizer to `folder`, atomically.

    Replaces an older checkpoint there. Raises CheckpointError when something else is there.
    """
    folder = Path(folder)
    refuse_to_replace(folder, "a model of ours", (ARCHITECTURE, WEIGHTS, *adapters.FILES, *BESIDE))
    with replace_folder(folder) as draft:
        write_model(model, draft, tokenizer)
    return folder


def write_model(model: Any, folder: Path, tokenizer: Any = None, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the files of `save_model` into an existing folder, with `weights` in place of the model's own."""
    write_architecture(model, folder, tokenizer)
    write_tensors(adapters.write(model, folder, weights or {}), folder / WEIGHTS)


def write_architecture(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write what a checkpoint's folder has beside weights: the architecture, and the tokenizer where there is one."""
    node = {"format": FORMAT, "model": to_dict(model.whole)}
    text = yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120)
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def load(path: str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """Load the model of a checkpoint, of a run's newest one, or of a Hugging Face folder, in eval mode.

    `dtype` is the file's unless given. Raises CheckpointError with a line for each fault, before any weight is read.
    """
    from zoo.checkpoint import hf

    folder = find(path)
    return load_model(folder, dtype, device) if (folder / ARCHITECTURE).is_file() else hf.load(folder, dtype, device)


def load_spec(path: str | Path) -> Any:
    """Load the architecture of what `load` takes; no weight is read. Raises CheckpointError."""
    from zoo.checkpoint import hf

    folder = find(path)
    return read_spec(folder) if (folder / ARCHITECTURE).is_file() else hf.compose_spec(hf.open_folder(folder)[0].body)


def load_model(folder: str | Path, dtype: Any = None, device: str = "cpu") -> nn.Module:
    """Load the model of one of our checkpoint folders, in eval mode. Adapters are merged into its weights."""
    folder = Path(folder)
    spec = read_spec(folder)
    where = pick_device(device)
    spread.check_weights(folder, table(spec, spec.d_model))
    kind = None if dtype is None else resolve_dtype(dtype)
    tensors = {name: each.to(where, kind) for name, each in spread.open_weights(folder, str(where)).items()}
    model = build(spec, device="meta")
    model.load_state_dict(tensors, assign=True)
    adapters.merge(model, folder)
    return model.eval()


# ---------------------------------------------------------------- a run


@dataclass
class Resumable:
    """What a run resumes from. `counters` is plain data, which the run defines.

    `evaluated` are weights that a model is evaluated with in place of those that are trained, by name: they are saved
    as the model's, and the trained ones beside the optimizer's states. `averages` are other averages of the weights by
    name; each becomes a checkpoint of its own in the folder (`step-000400/ema`). The processes of `world` may each hold
    a part of all these. With `sharded` each writes its own part.
    """

    model: Any
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
    tokenizer: Any,
    keep: int,
    spared: Callable[[int], bool] = lambda step: False,
) -> Path:
    """Publish the checkpoint of a step (`zoo.checkpoint.publish`). Of those up to it the `keep` newest stay, and those
    of the steps that are `spared`. All processes of its world call this; the main one writes."""
    folder = run / CHECKPOINTS / f"step-{step:06}"
    if state.sharded:
        return Sharded(state, tokenizer).save(folder, choose_kept(keep, spared))
    shares = state.model.shares
    staged = shares.stages is not None
    shared = {name: each for name, each in state.model.state_dict().items() if staged or shares.splits(name, each)}
    own = make_all_whole(shared, shares)
    evaluated = make_all_whole(state.evaluated, shares)
    averages = {name: make_all_whole(weights, shares) for name, weights in state.averages.items()}
    states = list_states(state)

    def write(draft: Path) -> None:
        write_model(state.model, draft, tokenizer, {**own, **evaluated})
        for name, weights in averages.items():
            (draft / name).mkdir()
            write_model(state.model, draft / name, tokenizer, {**own, **weights})
        write_tensors(states, draft / STATES)
        write_counters(draft, state.counters)

    if state.world.main:
        publish(folder, write, choose_kept(keep, spared))
    state.world.wait()
    return folder


def start_saving(
    run: Path,
    step: int,
    state: Resumable,
    tokenizer: Any,
    keep: int,
    spared: Callable[[int], bool],
    world: World,
) -> Future[Path]:
    """Begin to save a checkpoint in shards; it is written and published while training goes on. The processes of
    `world` have a process group of their own for it."""
    saved = Sharded(replace(state, world=world), tokenizer, copied=True)
    chosen = {read_step(each): spared(read_step(each)) for each in steps(run / CHECKPOINTS)}
    writer = ThreadPoolExecutor(1, thread_name_prefix="zoo-checkpoint")
    folder = run / CHECKPOINTS / f"step-{step:06}"
    done = writer.submit(saved.save, folder, choose_kept(keep, lambda step: chosen.get(step, True)))
    writer.shutdown(wait=False)
    return done


class Sharded:
    """A checkpoint in shards, of which each process writes what it holds. With `copied` that is copied first, so that
    it can be written while training goes on."""

    def __init__(self, state: Resumable, tokenizer: Any, copied: bool = False) -> None:
        model = state.model
        self.state, self.tokenizer = state, tokenizer
        parts = {spread.SHARDS: spread.hold_weights(model, state.evaluated)}
        for name, weights in state.averages.items():
            parts[f"{name}/{spread.SHARDS}"] = spread.hold_weights(model, weights)
        states = spread.hold_states(model, state.optimizer, take_apart)
        names = {name: each for name, each in model.named_parameters() if name in state.evaluated}
        states |= {f"weights.{name}": spread.locate(model.shares, name, each) for name, each in names.items()}
        for name, each in read_random_states().items():
            states[f"random.{name_random(name, state.world.rank)}"] = spread.HeldTensor.whole(each)
        parts[spread.STATE_SHARDS] = states
        if copied:
            parts = {name: {key: each.copy() for key, each in held.items()} for name, held in parts.items()}
        self.parts = parts

    def save(self, folder: Path, keeps: Callable[[list[Path]], list[Path]]) -> Path:
        """Write and publish it. All processes call this."""
        world = self.state.world
        if world.main:
            publish(folder, self._write, keeps)
        else:
            spread.write_shards(Path(world.tell("")), self.parts, world.group)
        world.wait()
        return folder

    def _write(self, draft: Path) -> None:
        world, model = self.state.world, self.state.model
        spread.write_shards(Path(world.tell(str(draft))), self.parts, world.group)
        write_architecture(model, draft, self.tokenizer)
        for name in self.state.averages:
            write_architecture(model, draft / name, self.tokenizer)
        write_counters(draft, self.state.counters)


def make_all_whole(tensors: Mapping[str, Tensor], shares: Shares) -> dict[str, Tensor]:
    """Gather tensors of which each process may hold a part."""
    return shares.collect({name: shares.make_whole(name, each) for name, each in tensors.items()})


def choose_kept(keep: int, spared: Callable[[int], bool]) -> Callable[[list[Path]], list[Path]]:
    """Make the choice of the checkpoints that stay, among all those of a run before the newest."""

    def choose(earlier: list[Path]) -> list[Path]:
        for_good = [each for each in earlier if spared(read_step(each))]
        others = [each for each in earlier if each not in for_good]
        return for_good + others[len(others) - min(keep - 1, len(others)) :]

    return choose


def tidy_run(newest: Path, keep: int, spared: Callable[[int], bool]) -> None:
    """Finish what a process began that was killed while it published the newest checkpoint, the last perhaps."""
    retire(newest, choose_kept(keep, spared))


def list_states(state: Resumable) -> dict[str, Tensor]:
    """List what a run resumes from beside the model: the optimizer's tensors by parameter name, trained weights that
    are not the model's as it is saved, and the states of every process' random generators."""
    tensors: dict[str, Tensor] = {}
    shares = state.model.shares
    for name, parameter in state.model.named_parameters():
        if name in state.evaluated:
            tensors[f"weights.{name}"] = shares.make_whole(name, parameter.detach())
        for key, value in state.optimizer.state.get(parameter, {}).items():
            whole = shares.make_whole(name, value) if torch.is_tensor(value) and shares.splits(name, value) else value
            for inner, tensor in take_apart(whole).items():
                tensors[f"optimizer.{name}/{key}{inner}"] = tensor
    tensors = shares.collect(tensors)
    for rank, found in enumerate(state.world.gather(read_random_states())):
        tensors |= {f"random.{name_random(name, rank)}": each for name, each in found.items()}
    return tensors


def name_random(device: str, rank: int) -> str:
    """Name the random generator of a device and a process; those of the main one by the device alone."""
    return f"{device}@{rank}" if rank else device


def take_apart(value: Any) -> dict[str, Tensor]:
    """Give the plain tensors of a state by what to add to its name: itself, or those that one of 8 bits is made of."""
    if hasattr(value, "__tensor_flatten__"):
        return {f":{inner}": getattr(value, inner) for inner in value.__tensor_flatten__()[0]}
    return {"": value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)}


def write_counters(folder: Path, counters: Mapping[str, Any]) -> None:
    """Write a run's counters into a checkpoint, or replace those that are there."""
    write_text(folder / COUNTERS, json.dumps({"format": FORMAT, **counters}, indent=2) + "\n")


def load_run(folder: Path, model: Any, optimizer: Optimizer, *, random: bool = True, rank: int = 0) -> dict[str, Any]:
    """Restore weights, optimizer and with `random` the random generators of a process from a checkpoint; return its
    counters. As many processes may go on as like: each takes its part. Raises CheckpointError."""
    counters = read_counters(folder)
    spread.check_weights(folder, table(model.whole, model.whole.d_model))
    take = model.shares.take_part
    if spread.is_sharded(folder):
        spread.fill_weights(model, folder)
    else:
        own, held = spread.open_weights(folder, str(next(model.parameters()).device)), model.state_dict()
        there = {**own, **adapters.read(model, folder)}
        model.load_state_dict({name: take(name, each, held[name]) for name, each in there.items() if name in held})
    drop_gathered(model)
    names = {name: parameter for name, parameter in model.named_parameters()}
    for name, tensor in open_states(folder):
        kind, _, rest = name.partition(".")
        if kind == "random":
            place, _, owner = rest.partition("@")
            if random and int(owner or 0) == rank:
                restore_random(place, tensor)
        elif kind == "weights":
            if rest in names:
                with torch.no_grad():
                    names[rest].copy_(take(rest, tensor, names[rest]))
        elif (owner := rest.rpartition("/")[0]) in names:
            key = rest.rpartition("/")[2]
            restore_optimizer(optimizer, names[owner], key, tensor, partial(take, owner))
    return counters


def open_states(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read the states of a checkpoint one by one, of shards each when it comes. Raises CheckpointError."""
    from safetensors.torch import load_file

    if not (folder / spread.STATE_SHARDS).is_dir():
        read_header(folder / STATES)  # raises where the file is broken
        yield from load_file(folder / STATES).items()
        return
    tensors = spread.ShardedTensors(folder / spread.STATE_SHARDS)
    yield from ((name, tensors[name]) for name in tensors)


def read_counters(folder: Path) -> dict[str, Any]:
    """Read the counters of a run's checkpoint. Raises CheckpointError."""
    file = folder / COUNTERS
    try:
        counters = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: a model alone, no run goes on from it (a checkpoint of a run)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a file that zoo wrote)") from error
    if not isinstance(counters, dict):
        raise CheckpointError(f"{file}: holds no counters, found {type(counters).__name__} (a file that zoo wrote)")
    check_format(file, counters.get("format"))
    return counters


def restore_optimizer(
    optimizer: Optimizer, parameter: Tensor, key: str, value: Tensor, take: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Set one tensor of a parameter's optimizer state to the part that `take` takes of a whole one. A fused optimizer
    has its step counters on the device, any other on the CPU. A state of 8 bits, which is made of several tensors, must
    be there already."""
    own = optimizer.state[parameter]
    key, _, inner = key.partition(":")
    if value.shape == (1,) and parameter.shape != (1,):  # a number, which a shard stores as a tensor of one place
        value = value.reshape(())
    if inner:
        getattr(own[key], inner).copy_(value)
        return
    if (keep := getattr(optimizer, "keep_state", None)) is not None:  # it keeps them in a place of its own
        own[key] = keep(parameter, value)
        return
    beside = value.ndim > 0 or any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    own[key] = take(value.to(parameter.device), parameter) if beside else value


def read_random_states() -> dict[str, Tensor]:
    """Read the states of torch's random generators, by device: dropout and the like draw from them."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda:{index}": state for index, state in enumerate(cuda)}}


def restore_random(device: str, state: Tensor) -> None:
    """Set the state of a device's random generator, where the device is there."""
    if device == "cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count():
        torch.cuda.set_rng_state(state, device)
