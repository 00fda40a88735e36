"""Read a file line by line, within a budget: a longer line is never held whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from zoo.errors import CheckpointError

LINE = 128 << 20
"""Maximum bytes (or characters) of a line."""


def read_lines(stream: IO[Any], place: str, most: int = LINE) -> Iterator[Any]:
    """Yield the lines of a stream of bytes or text, line ends included. Raises CheckpointError for a line longer than
    `most` bytes or characters, also in a compressed file, without holding the whole line in memory."""
    number = 0
    while line := stream.readline(most + 1):
        number += 1
        if len(line) > most:
            raise CheckpointError(f"{place}, line {number:,}: is longer than {most >> 20} MiB (shorter lines)")
        yield line
