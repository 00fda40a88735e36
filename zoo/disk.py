"""Write to the disk whole or not at all: a reader, and a crash, see what was there before or what is there now."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A draft that becomes `folder` when the block ends, or goes when it raises; those of a killed run go too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        yield draft
        for file in draft.iterdir():
            flush(file)
        flush(draft)
        if folder.exists():
            old = folder.with_name(f"{draft.name}.old")
            os.rename(folder, old)
            os.rename(draft, folder)
            shutil.rmtree(old)
        else:
            os.rename(draft, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """The same for a file."""
    for left in file.parent.glob(f".{file.name}.*"):
        left.unlink()
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        yield draft
        flush(draft)
        os.replace(draft, file)
        flush(file.parent)
    finally:
        draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """To the disk: or a power cut could leave a name and no content."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(file: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(file) as draft:
        draft.write_text(text, encoding="utf-8")
