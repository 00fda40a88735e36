"""Read the tensors of a Hugging Face folder under Zoo's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.hf.opening import HFSource, find_differences, open_folder
from zoo.checkpoint.mapping import map_tensors
from zoo.checkpoint.stored import PackedTensor, ReadSlices, StoredModel, StoredTensors
from zoo.checkpoint.tensor_files import NAMES, Header, Packed, TensorReader
from zoo.errors import CheckpointError
from zoo.lazy import Tensor, torch
from zoo.spec import Buffer, tensors

if TYPE_CHECKING:
    from zoo.checkpoint.stored import WholeSpec


def open_model(folder: Path, mapped: bool = True, dtype: torch.dtype | None = None) -> StoredModel:
    """Open the model of a Hugging Face folder; tensors are read and converted lazily.

    With `mapped`, tensors that need no conversion stay memory-mapped. Quantised weights are dequantised to `dtype`, or
    to config.json's dtype. Raises CheckpointError, a line for each fault, before any weight is read.
    """
    source, found = open_folder(folder)
    of_gguf = source.laid is not None  # a GGUF file has norms in float32 among weights of fewer bits
    dtype = getattr(torch, source.config["dtype"]) if of_gguf and dtype is None else dtype
    found, spec = {name: _round_to(each, dtype) for name, each in found.items()}, source.spec
    entries = map_tensors(spec, source.stored)
    faults = find_differences(entries, found, source)
    if faults:
        raise CheckpointError(*faults)
    reader = TensorReader(folder, found, mapped)
    _check_copies(entries, reader, source)
    there = [entry for entry in entries if all(name in found for name in entry.theirs)]  # a file may lack buffers
    fresh = dict(_initial_values(spec, entries, found))
    forms = {name: form for entry in there for name, form in _list_forms(entry, found)}
    forms |= {name: torch.empty_like(each, device="meta") for name, each in fresh.items()}
    ours = _OursReader(there, reader, fresh)
    made = StoredModel(spec, StoredTensors(forms, ours.read, ours.find_packed, ours.find_slices), source)
    return made.cast(dtype) if of_gguf else made


def _round_to(header: Header, dtype: torch.dtype | None) -> Header:
    """Set the dtype to which a quantised tensor is dequantised. A tensor stored in float32 keeps float32: it is cast
    later, after its conversion steps."""
    if dtype is None or not isinstance(header, Packed) or header.dtype == "F32":
        return header
    return replace(header, dtype=NAMES[str(dtype).removeprefix("torch.")])


def _list_forms(entry: Entry, found: Mapping[str, Header]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each of Zoo's tensors in an entry, and a tensor of its shape and dtype on the meta device."""
    yield from zip(entry.ours, entry.to_ours([found[name].make_empty("meta") for name in entry.theirs]), strict=True)


class _OursReader:
    """Reads tensors by Zoo's names. Reading a tensor converts its whole entry; the entry's other tensors are kept until
    they are read, or until a tensor of another entry is read."""

    def __init__(self, entries: Sequence[Entry], reader: TensorReader, fresh: Mapping[str, Tensor]) -> None:
        self.entries = {name: entry for entry in entries for name in entry.ours}
        self.reader, self.fresh = reader, fresh
        self._made: dict[str, Tensor] = {}
        self._parts: dict[str, Mapping[str, Tensor]] = {}

    def read(self, name: str) -> Tensor:
        if name in self.fresh:
            return self.fresh[name]
        if name not in self._made:
            self._made = {}  # frees the last entry's tensors before more are read
            entry = self.entries[name]
            ours = entry.to_ours([self.reader[each] for each in entry.theirs])
            self._made = dict(zip(entry.ours, ours, strict=True))
        return self._made.pop(name)

    def find_slices(self, name: str) -> ReadSlices | None:
        """Find how to read a slice of a tensor; None if the tensor in the file must be converted."""
        entry = self.entries.get(name)
        plain = entry is not None and len(entry.theirs) == len(entry.ours) == 1 and not (entry.steps or entry.stacked)
        return self.reader.find_slices(entry.theirs[0]) if entry is not None and plain else None

    def find_packed(self, name: str) -> PackedTensor | None:
        """Find how a tensor is stored if all tensors of its entry are quantised; otherwise None."""
        entry = self.entries.get(name)
        headers = [] if entry is None else [self.reader.found[each] for each in entry.theirs]
        packed = {str(number): each for number, each in enumerate(headers) if isinstance(each, Packed)}
        if entry is None or len(packed) < len(headers):
            return None
        place = entry.ours.index(name)
        stored = {f"{number}.{role}": part for number, each in packed.items() for role, part in each.parts.items()}

        def read() -> Mapping[str, Tensor]:
            if entry.ours[0] not in self._parts:
                self._parts[entry.ours[0]] = {role: self.reader.read(each) for role, each in stored.items()}
            return self._parts[entry.ours[0]]

        def decode(held: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
            theirs = [
                each.layout.decode({role: held[f"{number}.{role}"] for role in each.parts}, dtype)
                for number, each in packed.items()
            ]
            return entry.to_ours(theirs)[place].contiguous()

        size = 0 if place else sum(each.nbytes for each in stored.values())
        return PackedTensor(size, read, decode)


def _check_copies(mapped: Sequence[Entry], reader: TensorReader, source: HFSource) -> None:
    """Raise CheckpointError if a tensor that the family declares a copy differs from its original."""
    body = source.body
    wanted = {name for entry in mapped for name in entry.theirs}
    for copy, original in body.copies.items():
        if copy == body.head:
            continue  # compared when the folder was opened
        if copy in reader.found and copy not in wanted and not torch.equal(reader[copy], reader[original]):
            raise CheckpointError(
                f"{source.folder}: {copy} differs from {original}, which it is a copy of (equal ones)"
            )


def _initial_values(
    spec: WholeSpec, mapped: Sequence[Entry], found: Mapping[str, Header]
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and initial value of each buffer that the file lacks; families list the buffers that may be absent."""
    lost = {name for entry in mapped if not all(each in found for each in entry.theirs) for name in entry.ours}
    for name, part, _ in tensors(spec, spec.d_model):
        if name in lost:
            assert isinstance(part, Buffer), f"{name}: a family lets files lack it, and only a buffer has a fixed value"
            tensor = torch.empty(part.shape, dtype=getattr(torch, part.dtype))
            part.init(tensor) if callable(part.init) else tensor.fill_(part.init)
            yield name, tensor
