"""Read the tensors of a GGUF file under the names of a model's class, dequantised by the package `gguf`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from math import prod
from typing import Any

from zoo.checkpoint.quantised.base import fill_rows
from zoo.checkpoint.tensor_files import NAMES, Header, Packed
from zoo.errors import CheckpointError, ConfigError
from zoo.families.body import Body
from zoo.families.gguf import ROPE, GGUFFile, StoredTensor, find_architecture, read_catalogue
from zoo.lazy import Tensor, torch
from zoo.untrusted.printable import shorten

AHEAD = ("nextn_predict_layers", "block_count")

DENSE = ("dense_2", "dense_3")
"""llama.cpp's names of the dense layers that sentence-transformers stores in the folders 2_Dense and 3_Dense."""


def require_gguf() -> None:
    """Raise ConfigError unless the package `gguf` is installed."""
    if find_spec("gguf") is None:
        raise ConfigError("gguf: the package is not installed (pip install 'transformer-zoo[gguf]')")


class GGMLTensor:
    """A tensor as ggml stores it: rows of blocks."""

    def __init__(self, tensor: StoredTensor) -> None:
        self.tensor, self.shape = tensor, tensor.shape

    def decode(self, held: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Dequantise the tensor, rounded to `dtype`. Raises CheckpointError for a type that the package does not
        dequantise."""
        import numpy as np
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType[self.tensor.kind]
        values, size = GGML_QUANT_SIZES[kind]
        width = self.shape[-1]
        stored = (prod(self.shape[:-1]), width // values * size)
        bytes_ = np.memmap(self.tensor.file, np.uint8, "r", self.tensor.start, stored)

        def rows(start: int, stop: int) -> Tensor:
            try:
                found = dequantize(np.array(bytes_[start:stop]), kind)
            except NotImplementedError:
                fault = f"{self.tensor.file}: holds {kind.name}, which the package gguf does not dequantise"
                raise CheckpointError(f"{fault} (a type that it does)") from None
            return torch.from_numpy(np.ascontiguousarray(found, np.float32)).reshape(stop - start, width)

        return fill_rows((stored[0], width), 1, dtype, rows).reshape(self.shape)


def lay_keys(body: Body, found: GGUFFile) -> Body:
    """Replace rows of the family's name map by the architecture's `keys` in conf/gguf.yaml, which undo what llama.cpp's
    converter changed. A row that is null there is dropped."""
    own = find_architecture(found).get("keys") or {}
    changed = {**own, **{ours: theirs for ours, theirs in body.family.keys.items() if ours not in own}}
    keys = {ours: theirs for ours, theirs in changed.items() if theirs is not None}
    return dataclasses.replace(body, family=dataclasses.replace(body.family, keys=keys))


def list_tensors(found: GGUFFile, names: Iterable[str], dtype: str) -> dict[str, Header]:
    """List the headers of a file's tensors, by their Hugging Face name if it is one of `names`, else by their GGUF
    name.

    RoPE tables, dense layers after a pooling and layers of multi-token prediction are left out. Tensors in float32 stay
    float32, for later conversion steps; others get `dtype`. Raises ConfigError without the package `gguf`, and
    CheckpointError for broken tensors.
    """
    require_gguf()
    own = {name_in_gguf(name, found): name for name in names}
    apart = {*ROPE, *list_dense(found)}
    kept = {name: each for name, each in found.tensors.items() if name not in apart and not _is_ahead(name, found)}
    return {own.get(name, name): _pack(each, name, dtype) for name, each in kept.items()}


def _is_ahead(name: str, found: GGUFFile) -> bool:
    """Whether a tensor belongs to the layers of multi-token prediction, which come last and are not read."""
    ahead, layers = (int(found.metadata.get(f"{found.architecture}.{key}") or 0) for key in AHEAD)
    match = re.match(r"blk\.(\d+)\.", name)
    return ahead > 0 and match is not None and int(match[1]) >= layers - ahead


def _pack(tensor: StoredTensor, name: str, dtype: str) -> Packed:
    kind = "F32" if tensor.kind == "F32" else NAMES[dtype]
    layout = GGMLTensor(_checked(tensor, name))
    return Packed(tensor.file, kind, tensor.shape, name=name, parts={}, layout=layout)


def _checked(tensor: StoredTensor, name: str) -> StoredTensor:
    """Return the tensor. Raises CheckpointError for an unknown type, for rows that are not whole blocks, and for a file
    that ends before the tensor does."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.kind not in GGMLQuantizationType.__members__:
        fault = f"{shorten(name)} is of {tensor.kind}, which the package gguf does not know (a newer one)"
        raise CheckpointError(f"{tensor.file}: {fault}")
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
    if tensor.shape[-1] % values:
        fault = f"{shorten(name)} of {tensor.kind} has rows of {tensor.shape[-1]:,} values"
        raise CheckpointError(f"{tensor.file}: {fault} (a multiple of {values})")
    end, there = tensor.start + prod(tensor.shape) // values * size, tensor.file.stat().st_size
    if end > there:
        fault = f"{shorten(name)} of {tensor.kind} and shape {list(tensor.shape)} ends at byte {end:,} of {there:,}"
        raise CheckpointError(f"{tensor.file}: {fault} (a whole file)")
    return tensor


def name_in_gguf(name: str, found: GGUFFile) -> str:
    """Translate a tensor's Hugging Face name to its GGUF name. A name is kept if the file has it, or has no tensor of
    the translated name."""
    if name in found.tensors:
        return name
    layers = int(found.metadata.get(f"{found.architecture}.block_count", 0))
    return next((each for each in _translate(name, found.architecture, layers) if each in found.tensors), name)


def to_gguf_name(name: str, architecture: str, layers: int) -> str | None:
    """Translate a tensor's Hugging Face name to llama.cpp's, for writing; None if llama.cpp has no such tensor. A name
    that begins with `blk.` is llama.cpp's already."""
    return next(_translate(name, architecture, layers), name if name.startswith("blk.") else None)


def _translate(name: str, architecture: str, layers: int) -> Iterator[str]:
    """Yield the names that a tensor may have in llama.cpp: first the catalogue's (`names`), then those of the package
    `gguf`. Both are looked up with and without the first part of the name, a class's prefix."""
    own = (read_catalogue()["architectures"][architecture] or {}).get("names") or {}
    names = _name_map(architecture, layers)
    tried = (name, name.partition(".")[2])
    for stem, _, leaf in (each.rpartition(".") for each in tried):
        if stem in own:
            yield f"{own[stem]}.{leaf}"
    yield from filter(None, (names.get_name(each, try_suffixes=(".weight", ".bias")) for each in tried))


@functools.cache
def _name_map(architecture: str, layers: int) -> Any:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(kinds[architecture], layers)


# ---------------------------------------------------------------- dense layers of a sentence model


def has_dense(architecture: str) -> bool:
    """Whether llama.cpp applies dense layers in models of an architecture."""
    return bool((read_catalogue()["architectures"].get(architecture) or {}).get("dense"))


def list_dense(found: GGUFFile) -> list[str]:
    """List the names of the dense layers' tensors in a file."""
    names = [f"{name}.weight" for name in DENSE] if has_dense(found.architecture) else []
    return [name for name in names if name in found.tensors]


def name_dense(architecture: str, width: int, matrices: Sequence[Tensor] | None) -> Mapping[str, Tensor]:
    """Map llama.cpp's names to the matrices of dense layers; empty if llama.cpp does not support the matrices. It
    supports two, the second of which outputs vectors of the model's `width`."""
    if matrices is None or len(matrices) != len(DENSE) or not has_dense(architecture):
        return {}
    ends = matrices[0].shape[1], matrices[-1].shape[0]
    return (
        {f"{name}.weight": each for name, each in zip(DENSE, matrices, strict=True)} if ends == (width, width) else {}
    )


def describe_dense(architecture: str, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Make the metadata of dense layers: the input and output width of each."""
    made = {}
    for name, matrix in named.items():
        start = f"{architecture}.{name.removesuffix('.weight')}_feat"
        made |= {f"{start}_out": matrix.shape[0], f"{start}_in": matrix.shape[1]}
    return made


def read_dense(found: GGUFFile) -> list[Tensor]:
    """Read the matrices of the dense layers after a pooling, in float32. Raises CheckpointError for broken tensors."""
    return [GGMLTensor(_checked(found.tensors[name], name)).decode({}, torch.float32) for name in list_dense(found)]
