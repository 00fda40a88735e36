"""Read and write tensor files: one safetensors file, several under an index, or torch's own .bin files."""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Protocol

from zoo.errors import CheckpointError, short
from zoo.families.described import read_json
from zoo.lazy import Tensor, torch
from zoo.runs import ARCHITECTURE
from zoo.untrusted.json_file import FILE, check_shape, parse_json, refuse_pointer
from zoo.untrusted.printable import list_first, quote, shorten
from zoo.untrusted.stated_paths import find_inside

Shape = tuple[int, ...]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BIN_INDEX, BIN = "pytorch_model.bin.index.json", "pytorch_model.bin"

METADATA, WRITER = "__metadata__", "zoo"
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
MOST_DIMENSIONS = 64  # torch's own limit
MOST_TENSORS = 65_536
"""Maximum tensors in a file: looking up names takes time. Published files have thousands, an index 140,000."""
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits per value, by safetensors' name of a dtype."""

TYPES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16"},
    **{"BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64"},
    **{"F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
"""torch's name of a dtype, by safetensors' name."""
NAMES = {theirs: ours for ours, theirs in TYPES.items()}


def refuse_to_replace(
    folder: Path, what: str, names: Iterable[str], *, source: Path | None = None, force: bool = False
) -> None:
    """Raise CheckpointError if `folder`, to be replaced by `what`, is no folder, is the `source` itself, or holds other
    files than `names` (glob patterns); without `force` also if zoo did not write it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder (a new folder would do)")
    if source is not None and source.exists() and folder.samefile(source):
        raise CheckpointError(f"{folder}: is the checkpoint itself (a new folder would do)")
    names = tuple(name.split("/")[0] for name in names)
    there = [each.name for each in folder.iterdir()]
    if others := [each for each in there if not any(fnmatchcase(each, name) for name in names)]:
        found = f"found {min(others)}, which is no part of {what}"
        raise CheckpointError(f"{folder}: would be replaced, {found} (a new folder would do)")
    if there and not force and not was_written_here(folder):
        raise CheckpointError(f"{folder}: would be replaced, and zoo did not write it (a new folder, or --force)")


def was_written_here(folder: Path) -> bool:
    """Whether zoo wrote a model's folder: it has a checkpoint's zoo.yaml, or weights with WRITER in their header."""
    if (folder / ARCHITECTURE).is_file():
        return True
    try:
        return any(read_metadata(file).get("writer") == WRITER for file in folder.glob("*.safetensors"))
    except (OSError, ValueError, CheckpointError):  # no header that zoo wrote
        return False


@dataclass(frozen=True)
class Header:
    """A tensor's entry in a file's header. `start` is the byte of the file where its data begins; `name` is its name in
    the file, if that differs from the model's name."""

    file: Path
    dtype: str
    shape: Shape
    start: int = 0
    name: str | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor's data in the file."""
        return -(-prod(self.shape) * BITS[self.dtype] // 8)

    def make_empty(self, device: str) -> Tensor:
        """Make an uninitialised tensor of this shape and dtype. Raises CheckpointError for a dtype that torch lacks."""
        import torch

        dtype = getattr(torch, TYPES.get(self.dtype, ""), None)
        if dtype is None:
            raise CheckpointError(
                f"{self.file}: has a tensor of {self.dtype}, which torch has no dtype for (F32, BF16)"
            )
        return torch.empty(self.shape, dtype=dtype, device=device)


class ReadsQuantised(Protocol):
    """How one quantised weight is stored in a file: its shape, and how to compute it from its stored tensors.
    `zoo.checkpoint.quantised.base` has the layouts."""

    shape: Shape

    def decode(self, held: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Compute the weight in `dtype` from its stored tensors, given by role."""
        ...


@dataclass(frozen=True, kw_only=True)
class Packed(Header):
    """A weight that is computed from several tensors when it is read. `dtype` is the result's dtype."""

    parts: Mapping[str, Header]
    layout: ReadsQuantised


def read_headers(folder: Path) -> dict[str, Header]:
    """List every tensor of a folder from the headers alone. Raises CheckpointError for a broken header, no weights, or
    several files without an index."""
    if (folder / INDEX).is_file():
        return _indexed(folder, folder / INDEX)
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return read_header(others[0])
    if (folder / BIN_INDEX).is_file() or (folder / BIN).is_file():
        return {name: Header(file, _name_type(t), tuple(t.shape)) for name, (file, t) in _bin_tensors(folder).items()}
    found = "several .safetensors and no index" if others else "no weights"
    raise CheckpointError(f"{folder}: {found} ({SINGLE}, {INDEX} or {BIN} would do)")


def read_index(index: Path) -> dict[str, Path]:
    """Read an index: the path of the file that holds each tensor. Raises CheckpointError for a malformed index, and for
    a file outside the folder."""
    from zoo.families.config_types import IndexFile

    folder, listed = index.parent, read_json(index, IndexFile, FILE)["weight_map"]
    holders = {file: name for name, file in reversed(listed.items())}
    files = {file: find_inside(folder, file, f"{index}: weight_map.{shorten(name)}") for file, name in holders.items()}
    return {name: files[file] for name, file in listed.items()}


def _indexed(folder: Path, index: Path) -> dict[str, Header]:
    listed = read_index(index)
    shards = {file: read_header(file) for file in dict.fromkeys(listed.values())}
    lost = [name for name, file in listed.items() if name not in shards[file]]
    if lost:
        said = f"is missing, {INDEX} says it is there"
        raise CheckpointError(*list_first(lost, lambda name: f"{listed[name]}: {shorten(name)} {said}", folder))
    return {name: header for shard in shards.values() for name, header in shard.items()}


def read_header(file: Path) -> dict[str, Header]:
    """Read the header of one safetensors file: eight bytes of length, then JSON. No tensor is read.

    Raises CheckpointError if the header is broken, or if the tensors it lists are not exactly the file's content.
    """
    try:
        node, begin = _read_node(file)
        entries = {name: entry for name, entry in node.items() if name != METADATA}
        _check_offsets(entries, file.stat().st_size - begin)
        return {
            name: Header(file, entry["dtype"], tuple(entry["shape"]), begin + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file (the checkpoint is not whole)") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a safetensors file)") from error


def read_metadata(file: Path) -> dict[str, str]:
    """Read the strings under `__metadata__` in the header of a safetensors file. Raises CheckpointError for values that
    are no strings. Call `read_header` first: a broken header raises ValueError here."""
    found = file.stat()
    return _read_metadata(file, found.st_mtime_ns, found.st_size)


@functools.lru_cache(8)
def _read_metadata(file: Path, changed: int, size: int) -> dict[str, str]:
    return check_shape(_read_node(file)[0].get(METADATA) or {}, dict[str, str], f"{file}: {METADATA}")


def _read_node(file: Path) -> tuple[dict[str, Any], int]:
    """Read a header's JSON, and the byte where tensors begin. Raises ValueError for a header longer than the file or
    LONGEST_HEADER, CheckpointError for a Git LFS pointer, malformed JSON or more than MOST_TENSORS tensors, and
    OSError."""
    with file.open("rb") as stream:
        start, size = stream.read(64), file.stat().st_size
        refuse_pointer(start, file)
        length = int.from_bytes(start[:8], "little")
        if length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        stream.seek(8)
        text = stream.read(length)
    if (found := text.count(b'"data_offsets"')) > MOST_TENSORS:
        raise CheckpointError(f"{file}: header: lists {found:,} tensors (at most {MOST_TENSORS:,} in a file)")
    return parse_json(text, f"{file}: header", dict[str, dict[str, Any]]), 8 + length


def _check_offsets(entries: Mapping[str, Any], size: int) -> None:
    """Raise ValueError unless the tensors fill the `size` bytes after the header, with no gap and no overlap."""
    spans = []
    for name, entry in entries.items():
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not (_are_numbers(shape, MOST_DIMENSIONS) and _are_numbers(offsets, 2) and isinstance(dtype, str)):
            found = f"dtype {quote(dtype)}, shape {quote(shape)}, data_offsets {quote(offsets)}"
            raise ValueError(f"{shorten(name)} with {found}")
        start, end = offsets
        bits = BITS.get(dtype)
        if bits is not None and prod(shape) * bits != (end - start) * 8:
            raise ValueError(f"{shorten(name)} of {dtype} and shape {shape} in {end - start:,} bytes")
        if not start <= end <= size:
            raise ValueError(f"{shorten(name)} at {start:,}:{end:,} in a file with {size:,} bytes of tensors")
        spans.append((start, end))
    ordered = [(0, 0), *sorted(spans), (size, size)]
    for (_, end), (start, _) in pairwise(ordered):
        if start != end:
            raise ValueError(f"{'an overlap' if start < end else 'a gap'} at byte {min(start, end):,} of the tensors")


def _are_numbers(given: Any, most: int) -> bool:
    """Whether this is a list of nonnegative integers: exactly two if `most` is 2, else at most `most`."""
    fits = isinstance(given, list) and (len(given) == most if most == 2 else len(given) <= most)
    return fits and all(type(each) is int and each >= 0 for each in given)


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors that are in memory to a safetensors file. Raises OSError."""
    stream_tensors(tensors, sort_aligned(tensors).items(), file)


def stream_tensors(forms: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], file: Path) -> None:
    """Write a safetensors file tensor by tensor, in any order, so that only one is in memory at a time. `forms` has a
    tensor of the same shape and dtype under each name (on the meta device, say). Raises OSError."""
    header, starts = lay_out_file(forms)
    with file.open("wb") as stream:
        stream.write(header)
        at = len(header)
        for name, tensor in tensors:
            form, start = forms[name], starts.pop(name)
            assert (tensor.shape, tensor.dtype) == (form.shape, form.dtype), f"{name}: is no {form.dtype} {form.shape}"
            if start != at:  # a file that cannot seek, such as a pipe, is written in order
                stream.seek(start)
            at = start + stream.write(_view_bytes(tensor.detach().cpu().contiguous()))
            del tensor  # before the next is read
    assert not starts, f"{file}: {next(iter(starts))} was not given"


def lay_out_file(forms: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """Make the header of a safetensors file, and find the byte at which each tensor begins."""
    node: dict[str, Any] = {METADATA: {"format": "pt", "writer": WRITER}}
    at, starts = 0, {}
    for name, form in sort_aligned(forms).items():
        starts[name], at = at, at + form.nbytes
        offsets = [starts[name], at]
        node[name] = {"dtype": _name_type(form), "shape": list(form.shape), "data_offsets": offsets}
    text = json.dumps(node, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


def sort_aligned(forms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sort tensors by bytes per value, widest first, so that each begins at a multiple of its own width."""
    return dict(sorted(forms.items(), key=lambda each: -each[1].element_size()))


def _name_type(tensor: Tensor) -> str:
    return NAMES[str(tensor.dtype).removeprefix("torch.")]


def _view_bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _bin_tensors(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    """Map the tensors of torch's own files into memory."""
    index = folder / BIN_INDEX
    files = dict.fromkeys(read_index(index).values()) if index.is_file() else [folder / BIN]
    return {key: (file, tensor) for file in files for key, tensor in read_bin(file).items()}


def read_bin(file: Path) -> dict[str, Tensor]:
    """Map one of torch's own files into memory. Only tensors are unpickled (weights_only). Raises CheckpointError for
    any other content."""
    import torch

    try:
        with file.open("rb") as stream:
            refuse_pointer(stream.read(64), file)
        mapped = zipfile.is_zipfile(file)  # the layout before torch 1.6 is no zip, and cannot be mapped
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{file}: cannot be read with weights_only, found {short(error)} (safetensors would do)"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: holds a {type(state).__name__} (tensors by name)")
    for name, each in state.items():
        if not isinstance(name, str) or not torch.is_tensor(each) or each.layout is not torch.strided:
            raise CheckpointError(f"{file}: {shorten(str(name))}: is a {type(each).__name__} (a plain tensor)")
        if str(each.dtype).removeprefix("torch.") not in NAMES:
            raise CheckpointError(f"{file}: {shorten(name)}: is of {each.dtype} (a dtype that safetensors has)")
    return state


class TensorReader:
    """Reads a folder's tensors by name, lazily; quantised weights are dequantised.

    With `mapped`, tensors are memory-mapped (torch's .bin files always are). Without it, each tensor is read into
    memory of its own, which is freed with the tensor. Pages read from a mapped file keep counting as the process'
    memory.
    """

    def __init__(self, folder: Path, found: Mapping[str, Header], mapped: bool = True) -> None:
        self.found, self.mapped = found, mapped
        self._open: dict[Path, Any] = {}
        self._bin = None
        if any(header.file.suffix == ".bin" for header in found.values()):
            self._bin = _bin_tensors(folder)

    def __getitem__(self, name: str) -> Tensor:
        header = self.found[name]
        if not isinstance(header, Packed):
            return self.read(header, name)
        held = {role: self.read(each) for role, each in header.parts.items()}
        dtype = header.make_empty("meta").dtype
        try:
            return header.layout.decode(held, dtype)
        except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
            found = f"{shorten(name)}: cannot be dequantised, found {short(error)}"
            raise CheckpointError(f"{header.file}: {found} (a whole file)") from error

    def read(self, header: Header, name: str = "") -> Tensor:
        """Read the tensor of a header as it is stored. Raises CheckpointError if the file cannot be read."""
        from safetensors import SafetensorError, safe_open

        file, name = header.file, header.name or name
        if self._bin is not None:
            return self._bin[name][1]
        if not self.mapped:
            return read_bytes(header)
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            return self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be read, found {short(error)} (a whole file)") from error

    def find_slices(self, name: str) -> Callable[[tuple[slice, ...]], Tensor] | None:
        """Make the function that reads a slice of a tensor into memory of its own: it reads only the rows of the slice,
        then cuts the other dimensions. None for a scalar, a quantised tensor, and files other than safetensors."""
        header = self.found[name]
        if isinstance(header, Packed) or header.file.suffix != ".safetensors" or not header.shape:
            return None

        def read(at: tuple[slice, ...]) -> Tensor:
            first, rows = at[0].start, at[0].stop - at[0].start
            start = header.start + first * (header.nbytes // header.shape[0])
            return read_bytes(replace(header, shape=(rows, *header.shape[1:]), start=start))[(slice(None), *at[1:])]

        return read


def read_bytes(header: Header) -> Tensor:
    """Read a tensor's bytes from a safetensors file. Raises CheckpointError if they cannot be read."""
    tensor = header.make_empty("cpu")
    place = _view_bytes(tensor)
    try:
        with header.file.open("rb") as stream:
            stream.seek(header.start)
            if stream.readinto(place) != len(place):
                raise OSError("an end in the middle of a tensor")
    except OSError as error:
        raise CheckpointError(f"{header.file}: cannot be read, found {short(error)} (a whole file)") from error
    return tensor
