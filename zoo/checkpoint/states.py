"""The states that a run resumes from beside the model: an optimizer's, and those of random generators, as tensors by
name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.files import Reader, read_header
from zoo.checkpoint.sharded import ShardedTensors
from zoo.checkpoint.spread import STATE_SHARDS
from zoo.checkpoint.stored import StoredTensors
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from zoo.checkpoint.store import Resumable

STATES = "training.safetensors"


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


def open_states(folder: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Read the states of a checkpoint one by one, each when it comes, those whose names begin with `prefix`. Raises
    CheckpointError."""
    if (folder / STATE_SHARDS).is_dir():
        tensors: Any = ShardedTensors(folder / STATE_SHARDS)
    else:
        found = read_header(folder / STATES)  # raises where the file is broken
        forms = {name: each.make_empty("meta") for name, each in found.items()}
        tensors = StoredTensors(forms, Reader(folder, found).__getitem__)
    yield from ((name, tensors[name]) for name in tensors if name.startswith(prefix))


def name_random(device: str, rank: int) -> str:
    """Name the random generator of a device and a process; those of the main one by the device alone."""
    return f"{device}@{rank}" if rank else device


def take_apart(value: Any) -> dict[str, Tensor]:
    """Give the plain tensors of a state by what to add to its name: itself, or those that one of 8 bits is made of."""
    if hasattr(value, "__tensor_flatten__"):
        return {f":{inner}": getattr(value, inner) for inner in value.__tensor_flatten__()[0]}
    return {"": value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)}


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
