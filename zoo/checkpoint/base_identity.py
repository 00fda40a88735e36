"""Identify the model that adapters are for: by its tensors, whatever files hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoint import hf, parallel_checkpoint
from zoo.checkpoint.gguf import find
from zoo.checkpoint.manifest import (
    MANIFEST,
    hash_text,
    identify,
    is_verified,
    recall_hash,
    recall_note,
    verify,
    write_note,
)
from zoo.families.described import CONFIG
from zoo.lazy import Tensor, torch
from zoo.model_hub import locate
from zoo.runs import ADAPTERS, ARCHITECTURE

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredTensors

STATED = (ARCHITECTURE, CONFIG, "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files of a folder that describe its tensors: architecture, config and indexes."""

HASHED = 1 << 22  # values that are converted and hashed at a time


def identify_base(path: Path) -> str:
    """Hash the tensors of a model, given as a folder or a GGUF file. Models with equal tensors under Zoo's names have
    the same hash, in any file format and any float dtype that holds the values. A checkpoint that itself has adapters
    is identified by its files.

    The first hash reads the whole model, about 2.5 s a GB; later calls recall it by the hash of the files. Raises
    OSError, and CheckpointError for a broken model.
    """
    files = identify_files(path)
    if (path / ADAPTERS).is_file():
        return files
    key = hash_text(f"tensors of {files}")
    if (known := recall_note(key)) is None:
        if path.is_dir():
            verify(path)
        known = _hash_tensors(_open_tensors(path))
        if is_verified():  # otherwise the tensors may not be those that the manifest's hash is of
            write_note(key, known)
    return known


def is_base(weights: str | Path, known: str) -> bool:
    """Whether a model has the identity `known` that adapters state: the hash of its tensors or, in older checkpoints,
    of its files. Raises OSError, and CheckpointError for a broken model."""
    path = resolve_base(weights)
    return identify_files(path) == known or identify_base(path) == known


def resolve_base(weights: str | Path) -> Path:
    """Find the folder of a model (of a run, the newest checkpoint), or its GGUF file."""
    path = locate(weights)
    return (path if path.is_file() else find(path)).absolute()


def identify_files(path: Path) -> str:
    """Hash the files that determine a model's weights: a GGUF file; a checkpoint's manifest; or the architecture and
    tensor files of another folder, whose other files may change. Raises OSError."""
    if path.is_file():
        return recall_hash(path)
    if (path / MANIFEST).is_file():
        return identify(path)
    read = (each for each in sorted(path.iterdir()) if each.name in STATED or each.suffix in (".safetensors", ".bin"))
    return hash_text(json.dumps({each.name: recall_hash(each) for each in read if each.is_file()}))


def _open_tensors(path: Path) -> StoredTensors:
    folder = find(path)
    own = (folder / ARCHITECTURE).is_file()
    return parallel_checkpoint.open_weights(folder, False) if own else hf.open_model(folder, False).tensors


def _hash_tensors(stored: StoredTensors) -> str:
    """Hash names, shapes and values of tensors, floats at least in float32: the hash does not depend on their dtype."""
    from xxhash import xxh3_128

    found = xxh3_128()
    for name in sorted(stored):
        tensor = stored[name]
        found.update(f"{name} {[*tensor.shape] or [1]}".encode())  # shards store scalars as [1]
        for part in tensor.reshape(-1).split(HASHED):
            found.update(_widen(part).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _widen(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values
