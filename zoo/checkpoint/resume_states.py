"""Save and restore, as tensors by name, the states that a run resumes from: the optimizer's and random generators'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.parallel_checkpoint import STATE_SHARDS, fill_pieces, locate, open_saved
from zoo.checkpoint.sharded import HeldTensor
from zoo.checkpoint.stored import StoredTensors
from zoo.checkpoint.tensor_files import read_header
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.checkpoint.store import Resumable
    from zoo.distributed.sharded_tensors import Shares

STATES = "training.safetensors"


def hold_states(state: Resumable) -> dict[str, HeldTensor]:
    """List this process' part of the tensors that a run resumes from in addition to the model: the optimizer's states
    by parameter name, the states of the random generators and, if other weights are saved as the model's
    (schedule-free), the trained weights."""
    held: dict[str, HeldTensor] = {}
    shares = state.model.shares
    for name, parameter in state.model.named_parameters():
        if name in state.evaluated:
            held[f"weights.{name}"] = locate(shares, name, parameter)
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value) and shares.splits(name, value) and value.ndim:
                held[f"optimizer.{name}/{key}"] = locate(shares, name, value)
                continue
            for inner, each in take_apart(value).items():
                held[f"optimizer.{name}/{key}{inner}"] = HeldTensor.whole(each)
    for name, each in read_random_states().items():
        held[f"random.{name_random(name, state.world.rank)}"] = HeldTensor.whole(each)
    return held


def open_states(folder: Path) -> StoredTensors:
    """Open the states of a checkpoint to be read lazily. Raises CheckpointError for a broken file."""
    return open_saved(folder / STATE_SHARDS, lambda: read_header(folder / STATES))


def read_part(states: StoredTensors, name: str, shares: Shares, owner: str, parameter: Tensor) -> Tensor:
    """Read a process' part of a parameter's optimizer state, by slices, onto the parameter's device. A state whose
    shape is not the whole parameter's is not divided."""
    form = states.forms[name]
    if shares.splits(owner, parameter) and locate(shares, owner, parameter).shape == form.shape:
        part = torch.zeros_like(parameter, dtype=form.dtype, requires_grad=False)
        fill_pieces({name: locate(shares, owner, part)}, states)
        return part
    return states[name]


def name_random(device: str, rank: int) -> str:
    """Name the random generator of a device and a rank: `cuda:0@3`; for rank 0, the device alone."""
    return f"{device}@{rank}" if rank else device


def take_apart(value: Any) -> dict[str, Tensor]:
    """Split an optimizer state into plain tensors, by a suffix of its name: "" for a plain tensor or a number
    (float64), `:part` for each part of an 8-bit tensor."""
    if hasattr(value, "__tensor_flatten__"):
        return {f":{inner}": getattr(value, inner) for inner in value.__tensor_flatten__()[0]}
    return {"": value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)}


def restore_optimizer(optimizer: Optimizer, parameter: Tensor, key: str, value: Tensor) -> None:
    """Set a process' part of one tensor of a parameter's optimizer state. Scalars (step counters) go to the device for
    a fused optimizer, else stay on the CPU. An 8-bit state, which consists of several tensors, must exist already."""
    own = optimizer.state[parameter]
    key, _, inner = key.partition(":")
    if value.shape == (1,) and parameter.shape != (1,):  # a scalar: shards store it with shape [1]
        value = value.reshape(())
    if inner:
        getattr(own[key], inner).copy_(value)
        return
    if (keep := getattr(optimizer, "keep_state", None)) is not None:  # the optimizer stores its states elsewhere
        own[key] = keep(parameter, value)
        return
    beside = value.ndim > 0 or any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    own[key] = value.to(parameter.device) if beside else value


def read_random_states() -> dict[str, Tensor]:
    """Read the states of torch's random generators, by device. Dropout draws from them, for example."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda:{index}": state for index, state in enumerate(cuda)}}


def restore_random(device: str, state: Tensor) -> None:
    """Set the state of a device's random generator, if the device exists."""
    if device == "cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count():
        torch.cuda.set_rng_state(state, device)
