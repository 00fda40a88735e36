"""The tensors of a folder, wherever they are: one safetensors file, several under an index, or torch's own .bin
files."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError
from zoo.families.described import read_json

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BIN_INDEX, BIN = "pytorch_model.bin.index.json", "pytorch_model.bin"


@dataclass(frozen=True)
class Header:
    """A tensor as its file describes it; `name` is what the file calls it, where that is another name."""

    file: Path
    dtype: str
    shape: Shape
    name: str | None = None


def headers(folder: Path) -> dict[str, Header]:
    """Every tensor of a folder, read from the headers alone. Raises CheckpointError."""
    if (folder / INDEX).is_file():
        return _indexed(folder, folder / INDEX)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return read_header(others[0])
    if (folder / BIN_INDEX).is_file() or (folder / BIN).is_file():
        return {name: Header(file, str(t.dtype), tuple(t.shape)) for name, (file, t) in _bin_tensors(folder).items()}
    found = "several .safetensors and no index" if others else "no weights"
    raise CheckpointError(f"{folder}: {found} ({SINGLE}, {INDEX} or {BIN} would do)")


def _indexed(folder: Path, index: Path) -> dict[str, Header]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{index}: has no weight_map (an index that transformers wrote)")
    shards = {file: read_header(folder / file) for file in dict.fromkeys(listed.values())}
    lost = [name for name, file in listed.items() if name not in shards[file]]
    if lost:
        raise CheckpointError(
            *(f"{folder / listed[name]}: {name} is missing, {INDEX} says it is there" for name in lost)
        )
    return {name: header for shard in shards.values() for name, header in shard.items()}


def read_header(file: Path) -> dict[str, Header]:
    """The header of one safetensors file: eight bytes of length, then JSON. Raises CheckpointError."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("a header longer than the file")
            node = json.loads(stream.read(length))
        return {name: Header(file, e["dtype"], tuple(e["shape"])) for name, e in node.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file (the checkpoint is not whole)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {type(error).__name__} (a safetensors file)") from error


def _bin_tensors(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    """The tensors of torch's own files, mapped into memory rather than read; nothing but tensors is unpickled."""
    import torch

    listed = read_json(folder / BIN_INDEX)["weight_map"] if (folder / BIN_INDEX).is_file() else {BIN: BIN}
    found: dict[str, tuple[Path, Tensor]] = {}
    for name in dict.fromkeys(listed.values()):
        file = folder / name
        try:
            mapped = zipfile.is_zipfile(file)  # the layout before torch 1.6 is no zip, and cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{file}: cannot be read with weights_only, found {type(error).__name__} (safetensors would do)"
            ) from error
        found |= {key: (file, tensor) for key, tensor in state.items()}
    return found


class Reader:
    """Tensors of a folder by name, each read when it is asked for; where nothing is changed, mapped into memory."""

    def __init__(self, folder: Path, found: Mapping[str, Header]) -> None:
        self.found = found
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._bin = None
        if any(header.file.suffix == ".bin" for header in found.values()):
            self._bin = _bin_tensors(folder)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        file, name = self.found[name].file, self.found[name].name or name
        if self._bin is not None:
            return self._bin[name][1]
        try:
            if file not in self._open:
                self._open[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            return self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be read, found {type(error).__name__} (a whole file)") from error
