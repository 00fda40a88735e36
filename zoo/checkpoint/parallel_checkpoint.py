"""Save and load a run's checkpoint in shards: each process writes and reads its own part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.headers import compare_shapes
from zoo.checkpoint.sharded import HeldTensor, Piece, ShardedTensors, load_shards, save_shards
from zoo.checkpoint.stored import StoredTensors
from zoo.checkpoint.tensor_files import INDEX, Header, TensorReader, read_header, read_headers
from zoo.distributed.sharded_tensors import Shares, is_shared, own_part
from zoo.lazy import torch
from zoo.runs import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.optim import Optimizer

    from zoo.run.layer import Model

SHARDS, STATE_SHARDS = "model.shards", "training.shards"
"""Folders of a sharded checkpoint, in place of the files of weights and of optimizer states."""


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint's weights are in shards."""
    return (folder / SHARDS).is_dir()


def open_weights(folder: Path, mapped: bool = True) -> StoredTensors:
    """Open the whole tensors of a checkpoint's model, read lazily; with `mapped`, tensors of a single file are
    memory-mapped. Raises CheckpointError for a broken file or a missing shard."""
    if is_sharded(folder):
        shards = ShardedTensors(folder / SHARDS)
        return StoredTensors(shards.forms, shards.__getitem__)
    found = _read_whole(folder)
    forms = {name: header.make_empty("meta") for name, header in found.items()}
    return StoredTensors(forms, TensorReader(folder, found, mapped).__getitem__)


def check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a checkpoint's names and shapes with its model's. Raises CheckpointError, one line for each difference
    (the first few of each sort)."""
    if is_sharded(folder):
        found = ShardedTensors(folder / SHARDS).forms
        compare_shapes(folder / SHARDS, {name: tuple(each.shape) for name, each in found.items()}, expected)
    else:
        compare_shapes(folder / WEIGHTS, {name: each.shape for name, each in _read_whole(folder).items()}, expected)


def _read_whole(folder: Path) -> Mapping[str, Header]:
    """Read the headers of whole tensors: of our one file, or of several that transformers wrote with an index. Raises
    CheckpointError for a broken file."""
    return read_headers(folder) if (folder / INDEX).is_file() else read_header(folder / WEIGHTS)


# ---------------------------------------------------------------- what a process holds


def locate(shares: Shares, name: str, tensor: Tensor) -> HeldTensor:
    """Find the piece of a tensor (or of an optimizer state of the same shape) that a process holds, and its offset. A
    tensor that tensor parallelism divides in several segments is gathered whole; all processes must call this."""
    tensor = tensor.detach()
    if shares.tensor is not None and len(shares.tensor.cuts[name].segments) > 1:
        return HeldTensor.whole(shares.make_whole(name, tensor))
    if not tensor.ndim:
        return HeldTensor.whole(tensor)
    local, offset = own_part(tensor), [0] * tensor.ndim
    if local is not tensor:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        offset = list(compute_local_shape_and_global_offset(tensor.shape, mesh, placements)[1])
    shape = list(tensor.shape)
    for division in reversed(shares.divisions):
        if (cut := division.find(name)) is not None:
            (segment,), rank = cut.segments, division.group.rank
            offset[cut.dim] += segment.start(rank, cut.ranks)
            shape[cut.dim] = segment.whole
            there = max(0, min(local.shape[cut.dim], segment.whole - offset[cut.dim]))
            local = local.narrow(cut.dim, 0, there)  # without the padding of the last part
    pieces = (Piece(tuple(offset), local),) if local.numel() else ()
    return HeldTensor(tuple(shape), tensor.dtype, pieces)


def hold_weights(model: Model, instead: Mapping[str, Tensor] | None = None) -> dict[str, HeldTensor]:
    """List the parts of a model's tensors that a process holds; `instead` replaces some of the tensors."""
    tensors = {**model.state_dict(), **(instead or {})}
    return {name: locate(model.shares, name, each) for name, each in tensors.items()}


def hold_states(
    model: Model, optimizer: Optimizer, take_apart: Callable[[Any], Mapping[str, Tensor]]
) -> dict[str, HeldTensor]:
    """List the parts of an optimizer's states that a process holds, by the parameter's name and the state's key.

    `take_apart` splits a state of another shape or type into plain tensors, by a suffix of the key.
    """
    found: dict[str, HeldTensor] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            plain = is_shared(value) or not hasattr(value, "__tensor_flatten__")  # no 8-bit tensor subclass
            if torch.is_tensor(value) and value.shape == parameter.shape and plain:
                found[f"optimizer.{name}/{key}"] = locate(model.shares, name, value)
                continue
            for inner, each in take_apart(own_part(value)).items():
                found[f"optimizer.{name}/{key}{inner}"] = HeldTensor.whole(each)
    return found


# ---------------------------------------------------------------- write and read


def write_shards(draft: Path, parts: Mapping[str, Mapping[str, HeldTensor]], group: ProcessGroup | None) -> None:
    """Write several sets of tensors, by folder. Each process writes its own part; all processes must call this."""
    for name, held in parts.items():
        save_shards(held, draft / name, group)


def fill_weights(model: Model, folder: Path) -> None:
    """Load a process' part of a checkpoint's weights into its model. Raises CheckpointError for a missing or broken
    shard."""
    source = ShardedTensors(folder / SHARDS)
    held: dict[str, HeldTensor] = {}
    for name, each in model.state_dict().items():
        if model.shares.tensor is not None and len(model.shares.tensor.cuts[name].segments) > 1:
            with torch.no_grad():
                each.copy_(model.shares.take_part(name, source[name].to(each.device), each))
        else:
            held[name] = locate(model.shares, name, each)
    load_shards(held, folder / SHARDS)
