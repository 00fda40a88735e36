"""Unpack the small files of a GGUF file, so that it is read as a Hugging Face folder is: config.json, its tokenizer,
and where the tensors are. They are made again from the file's header and lie in the cache."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

from zoo import runs
from zoo.checkpoint.gguf.tokenizer import describe_tokenizer, make_tokenizer
from zoo.disk import replace_folder
from zoo.errors import CheckpointError
from zoo.families.described import CONFIG, to_jsonable
from zoo.families.gguf import GGUFFile, describe_gguf, is_gguf, read_gguf
from zoo.paths import find_cache_folder
from zoo.untrusted.json_file import SETTINGS, JsonShape, read_json

POINTER = "gguf.json"
"""The file that names the GGUF file."""

VERSION = 1
"""Of what is unpacked: an older one is unpacked anew."""


class Pointer(JsonShape):
    """What POINTER holds."""

    file: str


def find(path: str | Path) -> Path:
    """The folder that `runs.find` finds, or that of a GGUF file. Raises CheckpointError."""
    return (
        unpack(Path(path).expanduser()) if is_gguf(path) and not Path(path).expanduser().is_dir() else runs.find(path)
    )


def unpack(file: Path) -> Path:
    """Unpack a GGUF file, unless it was before. Raises CheckpointError for an architecture that is not read; a
    vocabulary that is not read is a UserWarning."""
    try:
        file = file.resolve()
        seen = file.stat()
    except (OSError, RuntimeError):  # RuntimeError: links that lead round
        raise CheckpointError(f"{file}: no such file") from None
    key = f"{VERSION} {file} {seen.st_size} {seen.st_mtime_ns}"
    folder = _find_unpacked() / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if (folder / "tokenizer.json").is_file() and (folder / POINTER).is_file():
        return folder
    found = read_gguf(file, texts=True)
    config = describe_gguf(found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(folder) as draft:
        _write_json(draft / CONFIG, to_jsonable(config))
        _write_json(draft / POINTER, {"file": str(file)})
        try:
            make_tokenizer(found).save(str(draft / "tokenizer.json"))
            _write_json(draft / "tokenizer_config.json", describe_tokenizer(found))
        except CheckpointError as error:
            warnings.warn(f"{error}; the model is read without its tokenizer", stacklevel=2)
    return folder


def _write_json(file: Path, node: object) -> None:
    file.write_text(json.dumps(node, indent=2) + "\n", encoding="utf-8")


def _find_unpacked() -> Path:
    return find_cache_folder() / "gguf"


def is_unpacked(folder: Path) -> bool:
    """Whether a folder is that of a GGUF file. Such folders lie in the cache: a file of that name anywhere else names
    none, as it would be a stranger's word on which file to read."""
    return (folder / POINTER).is_file() and folder.resolve().parent == _find_unpacked().resolve()


def read_unpacked(folder: Path) -> GGUFFile:
    """Read the header of the GGUF file of a folder. Raises CheckpointError."""
    return read_gguf(Path(read_json(folder / POINTER, Pointer, most=SETTINGS)["file"]))
