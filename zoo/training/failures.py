"""Turn a full disk or memory that ran out into one line: failures for which no other code has a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.costs import price
from zoo.errors import ZooError, short
from zoo.lazy import torch
from zoo.training.settings import Training

FORESEEN = (ZooError, OSError, MemoryError, RuntimeError, ValueError, ImportError)
"""Errors of an evaluation, a sample or a picture that a run survives. Any other is a bug, and shows its trace."""

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Phrases by which torch's allocators and libraries say it in a plain RuntimeError."""


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
        raise ZooError(f"{where}: cannot be read or written, found {found} (the run's checkpoints stay)") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        would = advice() if advice is not None else "a smaller model"
        raise ZooError(f"memory: ran out, found {short(error)} ({would})") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the device, or this process, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def advise_smaller_batch(settings: Training, spec: Any, free: int | None) -> str:
    """Name the least `accumulate` whose microbatches fit into the memory that was free before the model was built."""
    size, now = settings.batch_size, settings.batch_size // settings.accumulate
    finer = [parts for parts in range(settings.accumulate + 1, size + 1) if size % parts == 0]
    if free is not None and finer:
        for parts in finer:
            peak = price_training_peak(settings, spec, size // parts)
            if peak is not None and peak <= free:
                rows = f"{size // parts} of {now} rows at a time"
                return f"accumulate={parts} fits: {rows} need {peak / 1e9:,.1f} GB, {free / 1e9:,.1f} GB were free"
        if price_training_peak(settings, spec, 1) is not None:
            return f"a shorter seq_len or a smaller model: one row of {settings.seq_len} tokens does not fit either"
    if finer:
        return f"accumulate={finer[0]} takes {size // finer[0]} of {now} rows at a time, or a shorter seq_len"
    return "a smaller batch_size, a shorter seq_len or a smaller model"


def price_training_peak(settings: Training, spec: Any, rows: int) -> int | None:
    """Price the peak of a step with so many rows at a time, in bytes; None where the model's activations are
    unknown. A moving average of the weights stands beside it."""
    precision = "fp32" if settings.precision == "fp32" else "amp"
    how = {"precision": precision, "optimizer": settings.optim.kind, "fused_optimizer": True, "chunked_loss": True}
    how["recompute"] = settings.recompute
    found = price(spec, context=settings.seq_len, batch=rows, **how)
    peak, average = found["memory"].get("train_peak"), 0 if settings.ema is None else 4 * found["params"]["total"]
    return None if peak is None else peak + average
