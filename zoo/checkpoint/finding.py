"""Find the folder of a model at a path of any kind: a checkpoint, a run, a GGUF file, an adapter that peft wrote, or
the name of a model of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from zoo.checkpoint import gguf
from zoo.checkpoint.beside import BESIDE
from zoo.checkpoint.peft_reading import TENSORS, unpack_adapter
from zoo.checkpoint.tensor_files import BIN, BIN_INDEX, INDEX, SINGLE, read_index
from zoo.errors import CheckpointError
from zoo.families.described import is_peft
from zoo.model_hub import download, is_hub_name, list_files, locate


def find(path: str | Path) -> Path:
    """Find the folder of a model as `runs.find` does. A GGUF file, or an adapter in peft's format, is unpacked into a
    folder. A model of the hub is downloaded, with its tokenizer and weights. Raises CheckpointError for a missing path,
    and if downloading or unpacking fails."""
    folder = locate(path)
    if is_hub_name(path) and folder.is_dir():
        _download_weights(os.fspath(path))
    return unpack_adapter(folder) if is_peft(folder) else gguf.find(folder)


def _download_weights(name: str) -> None:
    """Download a model's tokenizer and weights: the files of an index, one safetensors file, or torch's own files."""
    beside = (each.replace("**/", "") for each in BESIDE)  # the hub's * goes through folders
    folder = download(name, *beside, INDEX, SINGLE, TENSORS)
    if (folder / INDEX).is_file():
        return _download_shards(name, folder / INDEX)
    if (folder / SINGLE).is_file() or (folder / TENSORS).is_file() or (folder / BIN).is_file():
        return None
    listed = [each for each in list_files(name) if "/" not in each]
    if BIN_INDEX in listed:
        return _download_shards(name, download(name, BIN_INDEX) / BIN_INDEX)
    others = [BIN] if BIN in listed else [each for each in listed if each.endswith(".safetensors")]
    if len(others) != 1:
        found = "several .safetensors and no index" if others else "no weights that are read"
        raise CheckpointError(f"{name}: {found} ({SINGLE}, {INDEX} or {BIN} would do)")
    download(name, *others)
    return None


def _download_shards(name: str, index: Path) -> None:
    files = dict.fromkeys(read_index(index).values())
    download(name, *(each.relative_to(index.parent).as_posix() for each in files))
