"""Read a Hugging Face folder's tensors into a model of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.files import Header, Reader
from zoo.checkpoint.hf.opening import HFSource, compose_spec, find_differences, open_folder
from zoo.checkpoint.mapping import Entry, map_tensors
from zoo.errors import CheckpointError
from zoo.lazy import torch
from zoo.spec import Buffer, tensors

if TYPE_CHECKING:
    from torch import Tensor


def load(folder: Path, dtype: Any = None, device: str = "cpu") -> Any:
    """Load the model of a Hugging Face folder, in eval mode. Its `source` says where it came from.

    Tensors that need no conversion stay memory-mapped until they are used; others are converted one by one. Raises
    CheckpointError, a line for each fault, before any weight is read.
    """
    from zoo.run.builder import build, pick_device, torch_dtype

    source, found = open_folder(folder)
    spec = compose_spec(source.body)
    mapped = map_tensors(spec, source.body)
    faults = find_differences(mapped, found, source)
    if faults:
        raise CheckpointError(*faults)
    where, kind = pick_device(device), None if dtype is None else torch_dtype(dtype)
    model = build(spec, device="meta")
    with Reader(folder, found) as reader:
        _check_copies(mapped, reader, source)
        for name, tensor in _read_ours(mapped, reader):
            _place(model, name, tensor.to(where), kind)
    for name, tensor in _initial_values(spec, mapped, found):
        _place(model, name, tensor.to(where), kind)
    model.source = source
    return model.eval()


def _check_copies(mapped: Sequence[Entry], reader: Reader, source: HFSource) -> None:
    """Raises CheckpointError where a tensor that the family knows as a copy differs from its original."""
    body = source.body
    wanted = {name for entry in mapped for name in entry.theirs}
    for copy, original in body.family.same.items():
        if copy == body.family.about.get("head"):
            continue  # compared when the folder was opened
        copy, original = body.full_name(copy), body.full_name(original)
        if copy in reader.found and copy not in wanted and not torch.equal(reader[copy], reader[original]):
            raise CheckpointError(
                f"{source.folder}: {copy} differs from {original}, which it is a copy of (equal ones)"
            )


def _read_ours(mapped: Sequence[Entry], reader: Reader) -> Iterator[tuple[str, Tensor]]:
    """Read our tensors by name, without those whose tensors the file may lack and does."""
    for entry in mapped:
        if all(name in reader.found for name in entry.theirs):
            yield from zip(entry.ours, entry.to_ours([reader[name] for name in entry.theirs]), strict=True)


def _initial_values(spec: Any, mapped: Sequence[Entry], found: Mapping[str, Header]) -> Iterator[tuple[str, Tensor]]:
    """The initial values of buffers whose tensors the file may lack and does."""
    lost = {name for entry in mapped if not all(each in found for each in entry.theirs) for name in entry.ours}
    for name, part, _ in tensors(spec, spec.d_model):
        if name in lost:
            assert isinstance(part, Buffer), f"{name}: a family lets files lack it, and only a buffer has a fixed value"
            tensor = torch.empty(part.shape)
            part.init(tensor) if callable(part.init) else tensor.fill_(part.init)
            yield name, tensor


def _place(model: Any, name: str, tensor: Tensor, dtype: Any) -> None:
    """Put a tensor into a model on meta; a parameter in this dtype, if one is given."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = torch.nn.Parameter(tensor if dtype is None else tensor.to(dtype))
