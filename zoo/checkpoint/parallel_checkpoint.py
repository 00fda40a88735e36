"""Save and load the parts of a run's tensors that its processes hold: joined to whole tensors, or in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint.headers import compare_shapes
from zoo.checkpoint.sharded import HeldTensor, Piece, Place, ShardedTensors
from zoo.checkpoint.stored import StoredTensors
from zoo.checkpoint.tensor_files import (
    INDEX,
    Header,
    TensorReader,
    read_header,
    read_headers,
    sort_aligned,
    stream_tensors,
)
from zoo.distributed.sharded_tensors import Shares, own_part
from zoo.lazy import Tensor, torch
from zoo.runs import WEIGHTS

if TYPE_CHECKING:
    from zoo.distributed.world import World
    from zoo.run.layer import Model
    from zoo.spec.cuts import Cut

SHARDS, STATE_SHARDS = "model.shards", "training.shards"
"""Folders of a sharded checkpoint, in place of the files of weights and of optimizer states."""


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint's weights are in shards."""
    return (folder / SHARDS).is_dir()


def open_weights(folder: Path, mapped: bool = True) -> StoredTensors:
    """Open the whole tensors of a checkpoint's model, read lazily; with `mapped`, tensors of a single file are
    memory-mapped. Raises CheckpointError for a broken file or a missing shard."""
    return open_saved(folder / SHARDS, lambda: _read_whole(folder), mapped)


def open_saved(shards: Path, read: Callable[[], Mapping[str, Header]], mapped: bool = True) -> StoredTensors:
    """Open whole tensors as `open_weights` does: those of a folder of shards or, if there is none, those with the
    headers that `read` gives."""
    if shards.is_dir():
        found = ShardedTensors(shards)
        return StoredTensors(found.forms, found.__getitem__, find_slices=found.find_slices)
    reader = TensorReader(shards.parent, read(), mapped)
    forms = {name: header.make_empty("meta") for name, header in reader.found.items()}
    return StoredTensors(forms, reader.__getitem__, find_slices=reader.find_slices)


def check_weights(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a checkpoint's names and shapes with its model's. Raises CheckpointError, one line for each difference
    (the first few of each sort)."""
    if is_sharded(folder):
        found = ShardedTensors(folder / SHARDS).forms
        compare_shapes(folder / SHARDS, {name: tuple(each.shape) for name, each in found.items()}, expected)
    else:
        compare_shapes(folder / WEIGHTS, {name: each.shape for name, each in _read_whole(folder).items()}, expected)


def _read_whole(folder: Path) -> Mapping[str, Header]:
    """Read the headers of whole tensors: of Zoo's single file, or of several that transformers wrote with an index.
    Raises CheckpointError for a broken file."""
    return read_headers(folder) if (folder / INDEX).is_file() else read_header(folder / WEIGHTS)


# ---------------------------------------------------------------- what a process holds


def locate(shares: Shares, name: str, tensor: Tensor) -> HeldTensor:
    """Find the pieces of a tensor (or of an optimizer state of the same shape) that a process holds, and their offsets
    in the whole tensor. A tensor that tensor parallelism cuts in several segments has a piece in each."""
    tensor = tensor.detach()
    local, shape, offset = own_part(tensor), list(tensor.shape), [0] * tensor.ndim
    if local is not tensor:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        offset = list(compute_local_shape_and_global_offset(tensor.shape, mesh, placements)[1])
    pieces = [Piece(tuple(offset), local)]
    for division in reversed(shares.divisions if tensor.ndim else []):
        if (cut := division.find(name)) is not None:
            pieces = [part for each in pieces for part in _place_piece(each, cut, division.group.rank)]
            shape[cut.dim] = sum(each.whole for each in cut.segments)
    return HeldTensor(tuple(shape), tensor.dtype, tuple(each for each in pieces if each.tensor.numel()))


def _place_piece(piece: Piece, cut: Cut, rank: int) -> Iterator[Piece]:
    """Move a piece of a rank's part to its place in the whole tensor: one piece for each segment, without padding."""
    dim, first = cut.dim, piece.offset[cut.dim]
    for run in cut.list_runs(rank):
        start = max(first, run.part)
        length = min(first + piece.tensor.shape[dim], run.part + run.length) - start
        if length > 0:
            offset = (*piece.offset[:dim], run.whole + start - run.part, *piece.offset[dim + 1 :])
            yield Piece(offset, piece.tensor.narrow(dim, start - first, length))


def hold_weights(model: Model, instead: Mapping[str, Tensor] | None = None) -> dict[str, HeldTensor]:
    """List the parts of a model's tensors that a process holds; `instead` replaces some of the tensors."""
    tensors = {**model.state_dict(), **(instead or {})}
    return {name: locate(model.shares, name, each) for name, each in tensors.items()}


# ---------------------------------------------------------------- write and read


def write_whole(held: Mapping[str, HeldTensor], file: Path, world: World) -> None:
    """Write the tensors that the processes of a world hold to one safetensors file of whole tensors. All processes must
    call this; the main one writes the file.

    The main process receives the pieces of one tensor after the other, in host memory. No process holds more than its
    own part on its device. A piece that several processes hold is sent by the first of them.
    """
    forms, owners = _find_owners(world, held)
    if world.main:
        whole = ((name, _join_pieces(form, owners[name], held.get(name), world)) for name, form in forms.items())
        stream_tensors(forms, whole, file)
        return
    for name in forms:
        for each in held[name].pieces if name in held else ():
            if owners[name][each.place] == world.rank:
                sent = each.tensor.contiguous().cpu().reshape(-1).view(torch.uint8)
                torch.distributed.send(sent, 0, group=world.host)


def _find_owners(world: World, held: Mapping[str, HeldTensor]) -> tuple[dict[str, Tensor], dict[str, dict[Place, int]]]:
    """Find the tensors of all processes, as meta tensors in the order of the file, and the rank that sends each
    piece."""
    described = {name: (each.shape, each.dtype, [each.place for each in each.pieces]) for name, each in held.items()}
    forms: dict[str, Tensor] = {}
    owners: dict[str, dict[Place, int]] = {}
    for rank, theirs in enumerate(world.all_gather(described)):
        for name, (shape, dtype, places) in theirs.items():
            forms.setdefault(name, torch.empty(shape, dtype=dtype, device="meta"))
            for place in places:
                owners.setdefault(name, {}).setdefault(place, rank)
    return sort_aligned(forms), {name: owners.get(name, {}) for name in forms}


def _join_pieces(form: Tensor, owners: Mapping[Place, int], held: HeldTensor | None, world: World) -> Tensor:
    """Join a tensor's pieces: the main process' own, and those that others send."""
    own = {each.place: each.tensor for each in (held.pieces if held is not None else ())}
    if len(owners) == 1 and own.keys() == owners.keys():
        return next(iter(own.values()))
    whole = torch.empty(form.shape, dtype=form.dtype)
    for (offset, shape), rank in owners.items():
        if rank:
            piece = torch.empty(shape, dtype=form.dtype)
            torch.distributed.recv(piece.reshape(-1).view(torch.uint8), rank, group=world.host)
        else:
            piece = own[offset, shape]
        whole[Piece(offset, piece).slices] = piece
        del piece  # before the next is received
    return whole


def fill_pieces(held: Mapping[str, HeldTensor], source: StoredTensors) -> None:
    """Copy the pieces that a process holds from stored tensors, one tensor at a time. Only slices are read, unless a
    tensor must be computed whole."""
    with torch.no_grad():
        for name, each in held.items():
            if not each.pieces:
                continue
            read = source.find_slices(name)
            whole = source[name] if read is None else None
            for piece in each.pieces:
                piece.tensor.copy_(read(piece.slices) if read is not None else whole[piece.slices])  # type: ignore[index]
            del whole  # before the next is read
