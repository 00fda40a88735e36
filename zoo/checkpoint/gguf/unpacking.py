"""Unpack a GGUF file into a Hugging Face folder: config.json, the tokenizer's files, and a pointer to the GGUF file,
which keeps the tensors. The folder is made from the file's header and lies in the cache folder."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from zoo import runs
from zoo.checkpoint.gguf.gguf_tokenizer import describe_tokenizer, make_tokenizer
from zoo.checkpoint.gguf.tensors import list_dense, read_dense
from zoo.checkpoint.sentence_files import write_modules
from zoo.disk import replace_folder
from zoo.errors import CheckpointError
from zoo.families.described import CONFIG, write_json
from zoo.families.gguf import GGUFFile, describe_gguf, is_gguf, read_gguf
from zoo.paths import find_cache_folder
from zoo.untrusted.json_file import SETTINGS, JsonShape, read_json

POINTER = "gguf.json"
"""Name of the file, in the unpacked folder, that states the GGUF file's path."""

VERSION = 4
"""Version of the unpacked files: a folder of an older version is made anew."""


POOLINGS = {1: "mean", 2: "cls", 3: "last"}
"""llama.cpp's number and Zoo's name of each pooling, which makes one vector of a text's hidden states."""

RANK = 4
"""llama.cpp's number of the pooling that computes logits of whole rows."""


class Pointer(JsonShape):
    """The content of POINTER: the path of the GGUF file."""

    file: str


def find(path: str | Path) -> Path:
    """Find the folder of a model as `runs.find` does; a GGUF file is unpacked to one. Raises CheckpointError for a
    missing path, and as `unpack` does."""
    return (
        unpack(Path(path).expanduser()) if is_gguf(path) and not Path(path).expanduser().is_dir() else runs.find(path)
    )


def unpack(file: Path) -> Path:
    """Unpack a GGUF file, unless that is done already, and return the folder. Raises CheckpointError for a missing file
    and for an unsupported architecture; warns of an unsupported vocabulary."""
    try:
        file = file.resolve()
        seen = file.stat()
    except (OSError, RuntimeError):  # RuntimeError: a cycle of links
        raise CheckpointError(f"{file}: no such file") from None
    key = f"{VERSION} {file} {seen.st_size} {seen.st_mtime_ns}"
    folder = _find_unpacked() / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if (folder / "tokenizer.json").is_file() and (folder / POINTER).is_file():
        return folder
    found = read_gguf(file, texts=True)
    config = describe_gguf(found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(folder) as draft:
        write_json(draft / CONFIG, config)
        write_json(draft / POINTER, {"file": str(file)})
        _write_pooling(found, draft)
        try:
            make_tokenizer(found).save(str(draft / "tokenizer.json"))
            write_json(draft / "tokenizer_config.json", describe_tokenizer(found))
        except CheckpointError as error:
            warnings.warn(f"{error}; the model is read without its tokenizer", stacklevel=2)
    return folder


def _write_pooling(found: GGUFFile, draft: Path) -> None:
    """Write the files of sentence-transformers where the file states a pooling; vectors are scaled to length 1."""
    width, limit, pooling = (
        found.metadata.get(f"{found.architecture}.{name}")
        for name in ("embedding_length", "context_length", "pooling_type")
    )
    if pooling in POOLINGS and width and limit:
        dense = read_dense(found) if list_dense(found) else ()
        write_modules(draft, (POOLINGS[pooling],), width, limit, dense)


def _find_unpacked() -> Path:
    return find_cache_folder() / "gguf"


def is_unpacked(folder: Path) -> bool:
    """Whether a folder is an unpacked GGUF file. Only folders in the cache count: a downloaded POINTER could name any
    file."""
    return (folder / POINTER).is_file() and folder.resolve().parent == _find_unpacked().resolve()


def read_unpacked(folder: Path) -> GGUFFile:
    """Read the header of the GGUF file from which a folder was unpacked. Raises CheckpointError if the file is missing
    or broken."""
    return read_gguf(Path(read_json(folder / POINTER, Pointer, most=SETTINGS)["file"]))
