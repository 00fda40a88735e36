"""Read untrusted JSON: bytes, depth and numbers within budgets, keys of the expected types."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from zoo.errors import CheckpointError
from zoo.untrusted.printable import quote, shorten

FILE = 128 << 20
"""Maximum bytes of a file. The largest published are a tokenizer (34 MB) and an index of 140,000 tensors (14 MB)."""
SETTINGS = 16 << 20
"""Maximum bytes of a settings file, such as a config.json."""
NESTED = 64
"""Maximum depth of lists and mappings. In deeper data recursive functions would raise RecursionError."""
LARGEST = 2**63
"""Upper limit (exclusive) of whole numbers, as in torch and safetensors."""
COUNTED = 2**100
"""Upper limit (exclusive) of the counters of runs: the FLOPs of a training can exceed 2⁶³."""
UNLIMITED = "model_max_length"
"""The tokenizer key whose number may exceed LARGEST: transformers writes 10^30 for no limit."""


POINTER = b"version https://git-lfs"
"""Start of a Git LFS pointer, the text file in place of a large file that was not downloaded."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""Matches a possible half of a surrogate pair, which can neither be written as UTF-8 nor tokenized."""


class JsonShape(BaseModel):
    """Base of the classes that declare the types of a file's keys. Unknown keys are allowed."""

    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True, protected_namespaces=())


READ = 40
"""Maximum number of a file's faults that are read for messages (of five lines at most): a list may have a million
faults."""

WORDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "missing": "to be there",
}
"""Words for the expected value in messages, by pydantic's name of the fault."""


def read_bytes(file: Path, most: int = FILE) -> bytes:
    """Read a file of at most `most` bytes. Raises FileNotFoundError for a missing file, and CheckpointError for a file
    that is larger, unreadable, a pipe, a device or a Git LFS pointer."""
    try:
        if file.exists() and not (file.is_file() or file.is_dir() or str(file).startswith("/dev/")):
            raise CheckpointError(f"{file}: is a pipe or a device (a file)")  # it might never end, or never begin
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = getattr(error, "strerror", None) or shorten(str(error))
        raise CheckpointError(f"{file}: cannot be read, found {found} (a readable file)") from error
    refuse_pointer(data, file)
    if len(data) > most:
        raise CheckpointError(f"{file}: is larger than {most >> 20} MiB (a file that is no larger)")
    return data


def refuse_pointer(start: bytes, file: Path) -> None:
    """Raise CheckpointError if a file starts like a Git LFS pointer. `start` must have at least 23 bytes."""
    if start.startswith(POINTER):
        raise CheckpointError(f"{file}: is a Git LFS pointer, not the file itself (`git lfs pull` fetches the file)")


def read_json(
    file: Path,
    shape: Any = None,
    *,
    most: int = FILE,
    hook: Callable[[dict], Any] | None = None,
    largest: int = LARGEST,
) -> Any:
    """Read a JSON file as plain data, and check it against `shape` (a JsonShape, or any type that pydantic knows).

    `hook` replaces mappings as they are read. Whole numbers must be below `largest`. Raises CheckpointError with one
    line for each faulty key, and FileNotFoundError for a missing file.
    """
    return parse_json(read_bytes(file, most), str(file), shape, hook=hook, largest=largest)


def parse_json(
    text: str | bytes,
    place: str,
    shape: Any = None,
    *,
    hook: Callable[[dict], Any] | None = None,
    largest: int = LARGEST,
) -> Any:
    """Parse JSON as plain data and check it against `shape`. `place` names the text in messages. Raises CheckpointError
    for invalid JSON, and for data that exceeds the budgets or does not match `shape`."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        node = json.loads(text, object_hook=hook)
    except RecursionError:
        raise CheckpointError(f"{place}: is nested more than {NESTED} deep (a flatter file)") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise CheckpointError(f"{place}: cannot be read as JSON, found {shorten(str(error))}") from error
    check_budget(node, place, largest)
    if _HALF.search(text):
        try:
            json.dumps(node, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            fault = "holds half of a surrogate pair (\\ud83d\\ude42, say, stands for one character)"
            raise CheckpointError(f"{place}: {fault}") from None
    return node if shape is None else check_shape(node, shape, place)


def check_budget(node: Any, place: str, largest: int = LARGEST) -> None:
    """Raise CheckpointError if plain data is nested more than NESTED deep or has a whole number beyond ±`largest`."""
    level, depth = [node], 0
    while level:
        depth += 1
        if depth > NESTED:
            raise CheckpointError(f"{place}: is nested more than {NESTED} deep (a flatter file)")
        below: list[Any] = []
        for each in level:
            kind = type(each)  # comparing types takes a third of isinstance's time: files have millions of texts
            if kind is str:
                continue
            if kind is dict:
                below += each.values() if UNLIMITED not in each else _leave_out_limit(each)
            elif kind is list:
                below += each
            elif kind is int and not -largest <= each < largest:
                raise CheckpointError(f"{place}: holds {quote(each)} (whole numbers of {largest.bit_length()} bits)")
        level = below


def _leave_out_limit(node: Mapping[str, Any]) -> list[Any]:
    return [value for key, value in node.items() if key != UNLIMITED or not isinstance(value, int)]


def check_shape(node: object, shape: Any, place: str) -> Any:
    """Check plain data against `shape`, and return it unchanged. Raises CheckpointError with the first few faults."""
    try:
        _adapter(shape).validate_python(node)
    except ValidationError as error:
        raise CheckpointError(
            *_describe_faults(place, error.errors(include_url=False, include_context=False))
        ) from None
    return node


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _describe_faults(place: str, faults: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe pydantic's first faults: file, key, value found, value expected. Faults of a union's members share a
    line. A container's fault is left out if an entry of it has a fault."""
    lines: dict[str, tuple[str, list[str]]] = {}
    for fault in faults[:READ]:
        names = [str(each) for each in fault["loc"] if not (isinstance(each, str) and _is_type(each))]
        key = ".".join(shorten(each, 40) for each in names)
        would = WORDS.get(fault["type"]) or shorten(fault["msg"]).lower().removeprefix("input should be ")
        found = "is missing" if fault["type"] == "missing" else f"is {quote(fault['input'])}"
        _, known = lines.setdefault(key, (found, []))
        if would not in known:
            known.append(would)
    first = {key: each for key, each in lines.items() if not any(other.startswith(f"{key}.") for other in lines)}
    return [
        f"{place}: {key + ': ' if key else ''}{found} ({' or '.join(would)})"
        for key, (found, would) in list(first.items())[:5]
    ]


def _is_type(name: str) -> bool:
    """Whether a step of pydantic's `loc` names a member of a union rather than a key of the file."""
    return name in ("str", "int", "float", "bool", "none", "nullable", "[key]") or name.startswith(
        ("list[", "dict[", "function-", "literal[", "constrained-")
    )
