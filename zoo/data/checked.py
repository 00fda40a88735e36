"""Checksums of cached files: xxh3 of each block, compared when a file is first read in a process.

A checksum is kept for each MiB, so that an error says where a file is damaged. Nothing on disk marks a file as checked:
the mark would hide later corruption. So each process reads a file once before it uses it, at the speed of the disk;
xxh3 itself takes about 0.1 s a GB. If the system has cached the file's pages, the cached pages are checked, and the
same pages are used afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from pydantic import Field

from zoo.disk import flush
from zoo.errors import CheckpointError, ZooError
from zoo.untrusted.json_file import JsonShape, parse_json

BLOCK = 1 << 20
SEAL = ',\n "xxh3": "'
END = '"\n}\n'


class FileRecord(TypedDict):
    """The expected contents of a file: its length, and the xxh3 (64 bits, in hex) of each BLOCK bytes."""

    bytes: int
    xxh3: list[str]


class FileShape(JsonShape):
    """The schema that a FileRecord read from disk must fit."""

    bytes: Annotated[int, Field(ge=0)]
    xxh3: list[str]


def hash_blocks(data: bytes | memoryview) -> list[str]:
    """Hash each block of BLOCK bytes."""
    from xxhash import xxh3_64_hexdigest

    return [xxh3_64_hexdigest(data[start : start + BLOCK]) for start in range(0, len(data), BLOCK)]


def write_checked(file: Path, data: bytes | memoryview) -> FileRecord:
    """Write a file and wait until it is on the disk. Returns its record."""
    file.write_bytes(data)
    flush(file)
    return {"bytes": len(data), "xxh3": hash_blocks(data)}


def record_file(file: Path) -> FileRecord:
    """Make the record of an existing file."""
    data = file.read_bytes()
    return {"bytes": len(data), "xxh3": hash_blocks(data)}


def remedy(file: Path) -> str:
    """Describe how to replace a damaged file of the cache."""
    return f"delete {file.parent}: it is made again"


def check_length(file: Path, record: FileRecord) -> None:
    """Raise ZooError when a file is missing or has another length than it was written with."""
    try:
        found = file.stat().st_size
    except OSError as error:
        raise ZooError(f"{file}: cannot be read, found {error.strerror} ({remedy(file)})") from error
    if found != record["bytes"]:
        what = f"was written with {record['bytes']:,} bytes, found {found:,}"
        raise ZooError(f"{file}: {what} ({remedy(file)})")


def verify_file(file: Path, record: FileRecord) -> None:
    """Compare a file with its record. Raises ZooError with the byte offsets of the first block that differs."""
    from xxhash import xxh3_64_hexdigest

    check_length(file, record)
    try:
        with open(file, "rb") as opened:
            for number, expected in enumerate(record["xxh3"]):
                if xxh3_64_hexdigest(opened.read(BLOCK)) != expected:
                    first = number * BLOCK
                    place = f"bytes {first:,} to {min(first + BLOCK, record['bytes']) - 1:,}"
                    raise ZooError(f"{file}: is damaged, found another checksum in {place} ({remedy(file)})")
    except OSError as error:
        raise ZooError(f"{file}: cannot be read, found {error.strerror} ({remedy(file)})") from error


# ---------------------------------------------------------------- an index that guards itself


def write_sealed(file: Path, node: Mapping[str, Any]) -> None:
    """Write an object as JSON. A last key is added: the xxh3 of the text before it."""
    from xxhash import xxh3_64_hexdigest

    body = json.dumps(node, indent=1).removesuffix("\n}")
    file.write_text(f"{body}{SEAL}{xxh3_64_hexdigest(body.encode())}{END}", encoding="utf-8", newline="\n")
    flush(file)


def read_sealed(file: Path, shape: Any = dict[str, Any]) -> dict[str, Any]:
    """Read a file that `write_sealed` wrote. Raises ZooError if the file is missing, is damaged or does not fit
    `shape`."""
    from xxhash import xxh3_64_hexdigest

    try:
        data = file.read_bytes()
    except OSError as error:
        raise ZooError(f"{file}: cannot be read, found {error.strerror} ({remedy(file)})") from error
    body, seal, tail = data.rpartition(SEAL.encode())
    if not seal or tail != f"{xxh3_64_hexdigest(body)}{END}".encode():
        place = f"bytes 0 to {len(data) - 1:,}" if data else "an empty file"
        raise ZooError(f"{file}: is damaged, found another checksum in {place} ({remedy(file)})")
    try:
        return parse_json(data, str(file), shape)
    except CheckpointError as error:  # the checksum is right, but another version wrote the file
        raise ZooError(f"{error} ({remedy(file)})") from error
