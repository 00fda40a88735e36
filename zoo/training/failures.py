"""Turn a full disk or memory that ran out into one line: failures for which no other code has a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import LostProcess, ZooError, short
from zoo.lazy import torch
from zoo.ranks.world import leave_at_once, read_world
from zoo.training.restarts import has_checkpoint

FORESEEN = (ZooError, OSError, MemoryError, RuntimeError, ValueError, ImportError)
"""Errors of an evaluation, a sample or a picture that a run survives. Any other is a bug, and shows its trace."""

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Phrases by which torch's allocators and libraries say it in a plain RuntimeError."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out", "timed out")
"""Phrases by which gloo and NCCL say that another process is gone."""


@contextmanager
def failures_in_one_line(folder: Path, advice: Callable[[], str] | None = None) -> Iterator[None]:
    """Raise ZooError, in one line, in place of an error of the file system or of memory that ran out.

    `advice` says what would fit into memory.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads our output any more: the command line deals with that
        raise
    except OSError as error:
        where = error.filename or folder
        found = error.strerror or short(error)
        stays = "the run's checkpoints stay" if has_checkpoint(folder) else "no checkpoint of the run is there"
        raise ZooError(f"{where}: cannot be read or written, found {found} ({stays})") from error
    except (MemoryError, RuntimeError) as error:
        if lost_another(error):
            leave_at_once()
            goes_on = f"`zoo train --resume {folder}` goes on"
            would = goes_on if has_checkpoint(folder) else "no checkpoint was saved yet: save_every=N"
            found = "another process of the run does not answer any more"
            raise LostProcess(f"{found} (what started it says which; {would})") from error
        if not is_out_of_memory(error):
            raise
        would = advice() if advice is not None else "a smaller model"
        raise ZooError(f"memory: ran out, found {short(error)} ({would})") from error


def lost_another(error: BaseException) -> bool:
    """Tell whether an error says that another process of the run does not answer any more."""
    return read_world().size > 1 and any(words in str(error) for words in LOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the device, or this process, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
