"""Read a file line by line, within a budget: no line is held whole that is longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zoo.errors import CheckpointError

LINE = 128 << 20
"""Bytes (or characters) of the longest line: a record with a book of a million pages would have less."""


def read_lines(stream: Any, place: str, most: int = LINE) -> Iterator[Any]:
    """Yield the lines of a stream of bytes or text with their ends, as iterating over it does. Raises CheckpointError
    for one of more than `most`; what a packed file unpacks to is not held beyond that."""
    number = 0
    while line := stream.readline(most + 1):
        number += 1
        if len(line) > most:
            raise CheckpointError(f"{place}, line {number:,}: is longer than {most >> 20} MiB (shorter lines)")
        yield line
