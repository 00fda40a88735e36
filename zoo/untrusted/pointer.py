"""Recognise Git LFS pointers: the text files that replace large files that were not downloaded."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import CheckpointError

START = b"version https://git-lfs"


def refuse_pointer(start: bytes, file: Path) -> None:
    """Raise CheckpointError if a file starts like a Git LFS pointer. `start` must have at least 23 bytes."""
    if start.startswith(START):
        raise CheckpointError(f"{file}: is a Git LFS pointer, not the file itself (`git lfs pull` fetches the file)")
