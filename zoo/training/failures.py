"""Turn an error of the file system, exhausted memory or a lost process into a ZooError of one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.distributed.world import leaves_at_once_after_errors, read_world
from zoo.errors import LostProcess, ZooError, short
from zoo.lazy import torch
from zoo.training.restarts import has_checkpoint

FORESEEN = (ZooError, OSError, MemoryError, RuntimeError, ValueError, ImportError)
"""Errors of an evaluation, a sample or a picture that a run survives. Any other error is a bug, and shows its
traceback."""

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Phrases of a plain RuntimeError by which torch's allocators and libraries report exhausted memory."""

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out", "timed out")
"""Phrases by which gloo and NCCL report that another process is gone."""


@contextmanager
def failures_in_one_line(folder: Path, advice: Callable[[], str] | None = None) -> Iterator[None]:
    """Raise a ZooError of one line for an error of the file system, exhausted memory or a lost process (LostProcess).

    `advice` describes a setting that would fit into memory.
    """
    with leaves_at_once_after_errors():
        try:
            yield
        except BrokenPipeError:  # the reader of standard output is gone: the command line handles it
            raise
        except OSError as error:
            where = error.filename or folder
            found = error.strerror or short(error)
            stays = "the run's checkpoints stay" if has_checkpoint(folder) else "no checkpoint of the run is there"
            raise ZooError(f"{where}: cannot be read or written, found {found} ({stays})") from error
        except (MemoryError, RuntimeError) as error:
            if lost_another(error):
                goes_on = f"`zoo train --resume {folder}` goes on"
                would = goes_on if has_checkpoint(folder) else "no checkpoint was saved yet: save_every=N"
                found = "another process of the run does not answer any more"
                raise LostProcess(f"{found} (what started it says which; {would})") from error
            if not is_out_of_memory(error):
                raise
            would = advice() if advice is not None else "a smaller model"
            raise ZooError(f"memory: ran out, found {short(error)} ({would})") from error


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of the run has stopped responding."""
    return read_world().size > 1 and any(words in str(error) for words in LOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or this process, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
