"""The registry of ways to multiply: list them, try them on this CPU, and test whether a row's bits are stable."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

from zoo.lazy import torch
from zoo.run.linear.base import EXACT, Processor, Way
from zoo.run.linear.exact import OneDNN, OneDNNPairs, TorchLinear, Transposed
from zoo.run.linear.lower import Brain, BrainPlain, Half, Int4, Int8Both, Int8Weights

WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        *(TorchLinear(), Transposed(), OneDNN(), OneDNNPairs()),
        *(Half(), Brain(), BrainPlain(), Int8Both(), Int8Weights(), Int4()),
    )
}
"""Every way by name. For weights in fewer bits the first way that can run is used; exact ways are timed."""

TRIAL = (64, 128)  # (N, K) of the trial product of a way
BOUNDS = {EXACT: 1e-5, "fp16": 1e-3, "bf16": 2e-2, "int8": 5e-2, "int4": 0.3}
"""Maximum error of a trial product of random numbers, relative to its largest value; beyond it a way is refused."""

COARSE = 2e-2  # the bound of exact ways in 16 bits


def list_ways(precision: str = EXACT) -> list[Way]:
    """List the ways of one precision."""
    return [way for way in WAYS.values() if way.precision == precision]


def refuse(way: Way, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
    """Return why a way cannot multiply here: its own reason, or the failure of its trial on this CPU. None if it
    can."""
    return way.refuses(shape, dtype, processor) or try_way(way.name, dtype, processor)


def list_able(
    precision: str, shape: tuple[int, int], dtype: str, processor: Processor, *, on_request: bool = False
) -> list[str]:
    """List the ways of a precision that can multiply here; with `on_request` also those used only on request."""
    ways = [way for way in list_ways(precision) if on_request or not way.on_request]
    return [way.name for way in ways if refuse(way, shape, dtype, processor) is None]


@cache
def try_way(name: str, dtype: str, processor: Processor) -> str | None:
    """Try one product of a way in a dtype, once a process. Returns the failure, or None.

    Operators differ between versions of torch, and some exist without a kernel for this processor.
    """
    way, kind = WAYS[name], getattr(torch, dtype)
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=draw).to(kind) for size in (TRIAL, (2, TRIAL[1])))
    bias = torch.randn(TRIAL[0], generator=draw).to(kind)
    try:
        with torch.inference_mode():
            y = way.run(x, way.prepare(weight, bias)).float()
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        return f"fails in torch {torch.__version__}: {str(error).splitlines()[0][:80] or type(error).__name__}"
    wanted = x.float() @ weight.float().t() + bias.float()
    bound = max(BOUNDS[way.precision], 0.0 if dtype == "float32" else COARSE)
    error = float((y - wanted).abs().max() / wanted.abs().max())
    return None if error <= bound else f"is wrong by {error:.2g} in torch {torch.__version__}"


class Found(NamedTuple):
    """A way as `zoo doctor` shows it: the `reason` why the way cannot run here (None if it can), and whether a row has
    the same bits for any number of rows (`stable`; None if the way cannot run)."""

    way: Way
    reason: str | None
    stable: bool | None


def survey_ways(processor: Processor, dtype: str = "float32") -> Iterator[Found]:
    """Yield each way in the registry's order, with the reason why it cannot run here, if any."""
    for way in WAYS.values():
        reason = refuse(way, (512, 512), dtype, processor)
        stable = None if reason is not None else is_count_stable(way.name, (512, 512), dtype)
        yield Found(way, reason, stable)


COUNTS = (1, 2, 3, 5, 8, 13, 16, 21, 32, 33, 48, 64, 100, 128, 200)
WIDEST = 8192  # maximum rows of the trial weight


@cache
def is_count_stable(name: str, shape: tuple[int, int], dtype: str) -> bool:
    """Test whether a row's product has the same bits for any number of rows, at any place. Run once per shape."""
    way, kind = WAYS[name], getattr(torch, dtype)
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(min(shape[0], WIDEST), shape[1], generator=draw).to(kind)
    x = torch.randn(max(COUNTS), shape[1], generator=draw).to(kind)
    with torch.inference_mode():
        packed = way.prepare(weight, None)
        whole = way.run(x, packed)
        for rows, trial in product(COUNTS, range(1 + 32 // shape[0])):  # a few outputs may be equal by chance
            start = (7 * rows + 31 * trial) % (len(x) - rows + 1)
            if not torch.equal(way.run(x[start : start + rows].clone(), packed), whole[start : start + rows]):
                return False
    return True
