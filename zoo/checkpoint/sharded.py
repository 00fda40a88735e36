"""Save and load sharded tensors: each process writes its own part to safetensors, by torch.distributed.checkpoint.

    model.shards/shard-00001-model-00001-of-00001.safetensors …

Each file records the offsets of its parts in the whole tensors, so that any number of processes with parts of any
shape can read them, and a single process can read tensor by tensor. DCP's own format is not used: it is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import CheckpointError, short
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


Place = tuple[tuple[int, ...], tuple[int, ...]]
"""The offset and the shape of a part of a tensor."""


class Piece(NamedTuple):
    """A part of a tensor, and the offset in the whole tensor at which it begins."""

    offset: tuple[int, ...]
    tensor: Tensor

    @property
    def place(self) -> Place:
        """Where the part is in the whole tensor."""
        return self.offset, tuple(self.tensor.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The slices of the whole tensor that are the part."""
        return tuple(slice(at, at + size) for at, size in zip(self.offset, self.tensor.shape, strict=True))


@dataclass(frozen=True)
class HeldTensor:
    """The pieces that a process holds of a tensor. `shape` is the whole tensor's."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> HeldTensor:
        """Hold all of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, (Piece((0,) * tensor.ndim, tensor.detach()),))

    def copy(self) -> HeldTensor:
        """Copy the pieces to host memory, so that they can be written while training goes on."""
        pieces = (Piece(each.offset, each.tensor.to("cpu", copy=True)) for each in self.pieces)
        return HeldTensor(self.shape, self.dtype, tuple(pieces))

    def view_vector(self) -> HeldTensor:
        """View a scalar as a vector [1]: torch's writer of safetensors has no scalars. Other tensors are unchanged."""
        if self.shape:
            return self
        return HeldTensor((1,), self.dtype, tuple(Piece((0,), each.tensor.reshape(1)) for each in self.pieces))


def save_shards(held: Mapping[str, HeldTensor], folder: Path, group: ProcessGroup | None = None) -> None:
    """Write the tensors that each process of a group holds, by name. All processes must call this. A part that several
    processes hold is written once."""
    from torch.distributed import is_initialized
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    alone = not is_initialized()
    with _quiet():
        vectors = {name: each.view_vector() for name, each in held.items()}
        save(vectors, storage_writer=writer, planner=_make_saving(), process_group=group, no_dist=alone)


class ShardedTensors(Mapping[str, "Tensor"]):
    """The whole tensors of a folder of shards by name, read lazily. Any access raises CheckpointError if the folder has
    no readable shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _metadata(self) -> Any:
        from safetensors import SafetensorError
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        reader = HuggingFaceStorageReader(str(self.folder))
        try:
            metadata = reader.read_metadata()
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            found = f"cannot be read, found {short(error)}"
            raise CheckpointError(f"{self.folder}: {found} (a folder that zoo wrote)") from error
        if not metadata.state_dict_metadata:
            raise CheckpointError(f"{self.folder}: has no shards (a folder that zoo wrote)")
        return metadata

    @property
    def forms(self) -> dict[str, Tensor]:
        """Meta tensors with the shapes and dtypes of the whole tensors. Raises CheckpointError if a part is missing."""
        found = {}
        for name, each in self._metadata.state_dict_metadata.items():
            there = sum(chunk.sizes.numel() for chunk in each.chunks)
            if there != each.size.numel():
                what = f"{there:,} of the {each.size.numel():,} values of {name} are there"
                raise CheckpointError(f"{self.folder}: a shard is missing, {what} (all that zoo wrote)")
            found[name] = torch.empty(each.size, dtype=each.properties.dtype, device="meta")
        return found

    def __getitem__(self, name: str) -> Tensor:
        each = self._metadata.state_dict_metadata[name]
        whole = torch.empty(each.size, dtype=each.properties.dtype)
        self.fill({name: HeldTensor.whole(whole)})
        return whole

    def find_slices(self, name: str) -> Callable[[tuple[slice, ...]], Tensor]:
        """Make the function that reads a slice of a tensor."""
        each = self._metadata.state_dict_metadata[name]

        def read(at: tuple[slice, ...]) -> Tensor:
            part = torch.empty([run.stop - run.start for run in at], dtype=each.properties.dtype)
            piece = Piece(tuple(run.start for run in at), part)
            self.fill({name: HeldTensor(tuple(each.size), part.dtype, (piece,))})
            return part

        return read

    def __iter__(self) -> Iterator[str]:
        return iter(self._metadata.state_dict_metadata)

    def __len__(self) -> int:
        return len(self._metadata.state_dict_metadata)

    def fill(self, held: Mapping[str, HeldTensor]) -> None:
        """Fill the pieces that a process holds, in place; other processes need not call this. Raises CheckpointError
        for a missing or broken shard."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = HuggingFaceStorageReader(str(self.folder))
        metadata = self._metadata
        reader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]
        try:
            with _quiet(), torch.no_grad():
                vectors = {name: each.view_vector() for name, each in held.items()}
                load(vectors, storage_reader=reader, planner=_make_loading(), no_dist=True)
        except CheckpointException as error:  # torch wraps any failure in this class
            found = f"cannot be read, found {short(error)}"
            raise CheckpointError(f"{self.folder}: {found} (a folder that zoo wrote)") from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations of its own functions
        yield


# ---------------------------------------------------------------- planners


def _make_saving() -> Any:
    from torch.distributed.checkpoint import metadata as M
    from torch.distributed.checkpoint import planner as P
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    class Saving(DefaultSavePlanner):
        """Plans to write the pieces of each HeldTensor."""

        def create_local_plan(self) -> Any:
            items = []
            for name, held in self.state_dict.items():
                for each in held.pieces:
                    chunk = M.ChunkStorageMetadata(torch.Size(each.offset), each.tensor.size())
                    properties = M.TensorProperties.create_from_tensor(each.tensor)
                    data = P.TensorWriteData(chunk, properties, torch.Size(held.shape))
                    index = M.MetadataIndex(name, chunk.offsets)
                    items.append(P.WriteItem(index, P.WriteItemType.SHARD, tensor_data=data))
            self.plan = P.SavePlan(items)
            return self.plan

        def resolve_data(self, write_item: Any) -> Any:
            index = write_item.index
            return _find(self.state_dict[index.fqn], index.offset).contiguous()

    return Saving(flatten_state_dict=False, flatten_sharded_tensors=False)


def _make_loading() -> Any:
    from torch.distributed.checkpoint import metadata as M
    from torch.distributed.checkpoint import planner as P
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

    class Loading(DefaultLoadPlanner):
        """Plans to fill the pieces of each HeldTensor from shards of any shape."""

        def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
            self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

        def create_local_plan(self) -> Any:
            items, known = [], self.metadata.state_dict_metadata
            for name, held in self.state_dict.items():
                chunks = [M.ChunkStorageMetadata(torch.Size(o), t.size()) for o, t in held.pieces]
                items += create_read_items_for_chunk_list(name, known[name], chunks)
            return P.LoadPlan(items)

        def resolve_tensor(self, read_item: Any) -> Any:
            tensor = _find(self.state_dict[read_item.dest_index.fqn], read_item.dest_index.offset)
            for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
                tensor = tensor.narrow(dim, start, length)
            return tensor

        def commit_tensor(self, read_item: Any, tensor: Any) -> None:
            pass  # it was filled in place

    return Loading(flatten_state_dict=False, flatten_sharded_tensors=False)


def _find(held: HeldTensor, offset: Sequence[int]) -> Tensor:
    return next(each.tensor for each in held.pieces if torch.Size(each.offset) == torch.Size(offset))
