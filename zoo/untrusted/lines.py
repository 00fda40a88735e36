"""Read a file line by line, within a budget. A longer line is never held whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from zoo.errors import CheckpointError

LINE = 128 << 20
"""Maximum number of bytes (or characters) of a line."""


def read_lines(stream: IO[Any], place: str, most: int = LINE) -> Iterator[Any]:
    """Yield the lines of a stream of bytes or text, with line ends. Raises CheckpointError for a line longer than
    `most` bytes or characters, without holding the whole line in memory, even in a compressed file."""
    number = 0
    while line := stream.readline(most + 1):
        number += 1
        if len(line) > most:
            raise CheckpointError(f"{place}, line {number:,}: is longer than {most >> 20} MiB (shorter lines)")
        yield line
