"""Measure how fast a run is, and the peak that its MFU is measured against."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from zoo.costs.hardware import of_device
from zoo.lazy import torch
from zoo.run.memory import read_peak_since
from zoo.run.threads import ThreadChoice, ThreadWatch

if TYPE_CHECKING:
    from torch import device as Device

ProductShape = tuple[int, int, int]

MEASURED_FOR = 0.15  # seconds for all shapes of one dtype
SHAPES = ((256, 256, 256), (1024, 256, 1024), (2048, 512, 512), (1024, 1024, 1024))
"""Rows and both widths of the products measured on a CPU, small ones first: like those of training. Libraries take
another way for other sizes, so no single one shows the largest rate."""
CALLS = 20  # of each shape at most
LARGE_SHAPES = ((8192, 8192, 8192),)
"""The product measured on a GPU whose data sheet is not known."""


@dataclass(frozen=True)
class Peak:
    """The most FLOP/s that matrix products reach, and where that figure is from."""

    flops: float
    source: str
    measured: bool = False

    def again(self, device: Device, precision: str) -> Peak:
        """Measure the peak again and keep the higher one: another program may have had the cores during the first
        measurement."""
        if not self.measured:
            return self
        return replace(self, flops=max(self.flops, measure_peak(device, precision)))

    def share(self, flops: float) -> float | None:
        """Compute the MFU: the share of the peak that a rate of FLOP/s is; None above 1, where the peak was measured
        too low."""
        share = flops / self.flops
        return share if share <= 1 else None

    def __str__(self) -> str:
        return f"{self.flops / 1e12:,.2f} TFLOP/s ({self.source})"


def find_peak(device: Device, precision: str) -> Peak:
    """Find the peak in the data sheet of a GPU that conf/hardware has; else measure it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        card = of_device(name)
        if card is not None and precision in card.tflops:
            return Peak(card.flops(precision), f"{precision} data sheet, {name}")
    products = "fp32" if precision == "fp32" else f"{precision} or fp32"
    return Peak(measure_peak(device, precision), f"{products} products, measured", measured=True)


def measure_peak(device: Device, precision: str) -> float:
    """Measure the best rate of matrix products in float32 or in the precision asked for, in FLOP/s.

    Both count, as a training step in bf16 takes some products in float32; a CPU may even have those as the faster.
    """
    shapes = LARGE_SHAPES if device.type == "cuda" else SHAPES
    dtypes = {torch.float32, torch.bfloat16 if precision == "bf16" else torch.float32}
    return max(measure_product_rate(device, dtype, shapes) for dtype in dtypes)


def measure_product_rate(
    device: Device, dtype: torch.dtype, shapes: Iterable[ProductShape], spend: float | None = None
) -> float:
    """Measure the best rate of products of these shapes, in FLOP/s, with the threads that torch has.

    Takes about `spend` seconds (MEASURED_FOR) whatever the rate: a shape that would take longer than is left is not
    begun.
    """
    best, until = 0.0, time.perf_counter() + (MEASURED_FOR if spend is None else spend)
    for rows, inner, columns in shapes:
        work = 2 * rows * inner * columns
        if best and time.perf_counter() + 2 * work / best > until:
            break
        a = torch.ones(rows, inner, device=device, dtype=dtype)
        b = torch.ones(columns, inner, device=device, dtype=dtype).t()  # as a layer's weight: other layouts may be slow
        out = torch.mm(a, b)  # also what the first call alone costs
        for _ in range(CALLS):
            _finish(device)
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            _finish(device)
            now = time.perf_counter()
            best = max(best, work / (now - start))
            if now >= until:
                return best
    return best


def _finish(device: Device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Clock:
    """Time spent on training steps alone, pauses left out."""

    seconds: float = 0.0
    pace: float = 0.0  # tokens a second of late
    _tokens: int = 0
    _since: float = 0.0

    def start(self, tokens: int) -> None:
        """Start the clock: training begins, or goes on, with so many tokens seen."""
        self._tokens, self._since = tokens, time.perf_counter()

    def lap(self, tokens: int) -> float:
        """Compute the tokens a second since the last lap. Must follow something that waits for the device."""
        now = time.perf_counter()
        passed, done = now - self._since, tokens - self._tokens
        self._since, self._tokens = now, tokens
        self.seconds += passed
        speed = done / passed
        self.pace = speed if not self.pace else 0.9 * self.pace + 0.1 * speed
        return speed

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock inside the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start


@dataclass
class Gauges:
    """What is measured of the process that trains: its pace, the peak that this is held against, its threads, and its
    memory. The peak of memory stays unknown where it cannot be read above what was held before (`held` is None)."""

    device: Device
    precision: str
    peak: Peak
    watch: ThreadWatch
    free: int | None  # bytes of memory that were free before the model was built
    held: int | None  # bytes that were held then
    clock: Clock = field(default_factory=Clock)
    peak_memory: int | None = None  # bytes above these at the peak of the first steps

    def measure_peak_again(self) -> None:
        """Measure the peak of products again, where it is no data sheet's."""
        self.peak = self.peak.again(self.device, self.precision)

    def note_memory(self) -> None:
        """Note the most memory that was held so far."""
        if self.held is not None:
            self.peak_memory = read_peak_since(self.device, self.held)

    def follow(self, speed: float) -> ThreadChoice | None:
        """Choose the number of threads again where the pace has fallen, or may have recovered."""
        if choice := self.watch.follow(speed):
            self.measure_peak_again()
        return choice
