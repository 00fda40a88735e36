"""Read JSON that a stranger may have written: bytes, depth and numbers within budgets, keys of the expected types."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from zoo.errors import CheckpointError
from zoo.untrusted.text import quote, shorten

FILE = 128 << 20
"""Bytes of the largest file: a tokenizer of 34 MB and an index of 140,000 tensors (14 MB) are published."""
SETTINGS = 16 << 20
"""Bytes of the largest file of settings, such as a config.json."""
NESTED = 64
"""Levels of lists and mappings. More would end the walks of such trees in RecursionError."""
LARGEST = 2**63
"""Whole numbers lie below: what torch and safetensors can hold."""
COUNTED = 2**100
"""Whole numbers that a run counts lie below: the FLOPs of a training pass 2⁶³."""
UNLIMITED = "model_max_length"
"""The key of a tokenizer whose number may be larger: transformers writes 10^30 where there is no limit."""


_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""What may be half of a surrogate pair, which is no text that could be written or tokenized."""


class JsonShape(BaseModel):
    """The types of the keys that Zoo reads in a file. Unknown keys are let through."""

    model_config = ConfigDict(extra="allow", strict=True, arbitrary_types_allowed=True, protected_namespaces=())


READ = 40
"""Faults of a file that are looked at: a list of a million texts has as many."""

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
"""What would do in place of a value of the wrong type, by pydantic's name of the fault."""


def read_bytes(file: Path, most: int = FILE) -> bytes:
    """Read a file of at most `most` bytes. Raises CheckpointError; FileNotFoundError where there is none."""
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
    if len(data) > most:
        raise CheckpointError(f"{file}: is larger than {most >> 20} MiB (a file that is no larger)")
    return data


def read_json(
    file: Path,
    shape: Any = None,
    *,
    most: int = FILE,
    hook: Callable[[dict], Any] | None = None,
    largest: int = LARGEST,
) -> Any:
    """Read a JSON file as plain data, after checking it against `shape` (a JsonShape, or any type that pydantic knows).

    `hook` replaces mappings as they are read. Whole numbers lie below `largest`. Raises CheckpointError, one line for
    each key at fault, and FileNotFoundError where there is no such file.
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
    """Parse JSON as plain data, after checking it against `shape`. `place` names it in messages. Raises
    CheckpointError."""
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
    """Check depth and numbers of plain data. Raises CheckpointError."""
    level, depth = [node], 0
    while level:
        depth += 1
        if depth > NESTED:
            raise CheckpointError(f"{place}: is nested more than {NESTED} deep (a flatter file)")
        below: list[Any] = []
        for each in level:
            kind = type(each)  # a comparison takes a third of isinstance: files have millions of texts
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


def check_shape(node: Any, shape: Any, place: str) -> Any:
    """Check plain data against the types that are expected, and return it as it is. Raises CheckpointError, one line
    for each key at fault (the first few)."""
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
    """Write the first faults that pydantic found: file, key, what was found, what would do. Members of a union have a
    fault each, and one line; that a list is no number is left out where an entry of it is at fault."""
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
    """Tell whether part of a place is pydantic's own name of a member of a union."""
    return name in ("str", "int", "float", "bool", "none", "nullable", "[key]") or name.startswith(
        ("list[", "dict[", "function-", "literal[", "constrained-")
    )
