"""Tell whether a run fits into memory before it starts, by its own price, and what would fit where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zoo.costs import price
from zoo.errors import ConfigError
from zoo.training.settings import Training


def check_memory(settings: Training, spec: Any, free: int | None) -> str | None:
    """Compare the price of a step with the bytes that are free. Returns a line where it is more, with what would fit.

    Raises ConfigError where not even weights, gradients and the optimizer's states fit, which are counted exactly. What
    a pass takes is priced for a CUDA device's kernels and may be some percent off, so that is no reason to refuse.
    """
    if free is None:
        return None
    figures = price_training(settings, spec, settings.batch_size // settings.accumulate)
    if (states := figures["states"]) > free:
        found = f"weights, gradients and states take {gigabytes(states)}, found {gigabytes(free)} free"
        raise ConfigError(f"model: does not fit into memory, {found} (a smaller model, or an optimizer with fewer)")
    peak = figures["peak"]
    if peak is None or peak <= free:
        return None
    return f"memory: a step takes about {gigabytes(peak)}, {gigabytes(free)} are free ({advise(settings, spec, free)})"


def advise(settings: Training, spec: Any, free: int | None) -> str:
    """Name what would fit into the memory that was free before the model was built: rows in more parts, or activations
    that are computed again; both where neither is enough alone. Without a price, name what takes less."""
    size, now = settings.batch_size, settings.batch_size // settings.accumulate
    finer = [parts for parts in range(settings.accumulate + 1, size + 1) if size % parts == 0]
    if free is None or price_training_peak(settings, spec, 1) is None:
        less = "recompute=full" if settings.recompute != "full" else "a shorter seq_len"
        if not finer:
            return f"{less}, a smaller batch_size or a smaller model"
        return f"accumulate={finer[0]} takes {size // finer[0]} of {now} rows at a time, or {less}"
    fits = list(find_fitting(settings, spec, free, finer))
    if not fits:
        return f"a shorter seq_len or a smaller model: one row of {settings.seq_len} tokens does not fit either"
    changes, rows, peak = fits[0]
    instead = f"; so does {fits[1][0]}" if len(fits) > 1 else ""
    verb = "fit" if "," in changes else "fits"
    needs = f"{rows} of {now} rows at a time need {gigabytes(peak)}, {gigabytes(free)} were free"
    return f"{changes} {verb}: {needs}{instead}"


def find_fitting(settings: Training, spec: Any, free: int, finer: list[int]) -> Iterator[tuple[str, int, int]]:
    """Yield changes that fit, with the rows at a time and the peak: the fewest parts, which cost next to no time; what
    is computed again; and only where neither does, both together."""
    now, found = settings.batch_size // settings.accumulate, False
    ways = {"selective": ("full",), "none": ("full",) if settings.compile else ("selective", "full")}
    again = ways.get(settings.recompute, ())
    for parts in finer:
        rows = settings.batch_size // parts
        if (peak := price_training_peak(settings, spec, rows)) is not None and peak <= free:
            found = True
            yield f"accumulate={parts}", rows, peak
            break
    for what in again:
        if (peak := price_training_peak(settings, spec, now, what)) is not None and peak <= free:
            found = True
            yield f"recompute={what}", now, peak
            break
    for parts in () if found else finer:
        rows = settings.batch_size // parts
        for what in again:
            if (peak := price_training_peak(settings, spec, rows, what)) is not None and peak <= free:
                yield f"accumulate={parts}, recompute={what}", rows, peak
                return


def price_training_peak(settings: Training, spec: Any, rows: int, recompute: str | None = None) -> int | None:
    """Price the peak of a step with so many rows at a time, in bytes; None where the model's activations are
    unknown."""
    return price_training(settings, spec, rows, recompute)["peak"]


def price_training(settings: Training, spec: Any, rows: int, recompute: str | None = None) -> dict[str, Any]:
    """Price a step with so many rows at a time, in bytes: its `peak`, None where the model's activations are unknown,
    and `states`, what is held whatever the rows are. A moving average of the weights stands beside it."""
    precision = "fp32" if settings.precision == "fp32" else "amp"
    how = {"precision": precision, "optimizer": settings.optim.kind, "fused_optimizer": True, "chunked_loss": True}
    how["recompute"] = recompute or settings.recompute
    found = price(spec, context=settings.seq_len, batch=rows, **how)
    memory, average = found["memory"], 0 if settings.ema is None else 4 * found["params"]["total"]
    states = sum(memory[name] for name in ("weights", "gradients", "optimizer")) + average
    peak = memory.get("train_peak")
    return {"peak": None if peak is None else peak + average, "states": states}


def gigabytes(size: int) -> str:
    """Write bytes as GB, with as many digits as tell small ones apart."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
