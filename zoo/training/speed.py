"""Measure a run's speed, and the peak FLOP/s that its MFU refers to."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from zoo.costs.hardware import of_device
from zoo.lazy import torch
from zoo.run.machine_memory import read_peak_since
from zoo.run.threads import ThreadChoice, ThreadWatch

ProductShape = tuple[int, int, int]

MEASURED_FOR = 0.15  # seconds for all shapes of one dtype
SHAPES = ((256, 256, 256), (1024, 256, 1024), (2048, 512, 512), (1024, 1024, 1024))
"""Shapes (rows, d_in, d_out) of the products measured on a CPU, small ones first, as in training. Libraries choose
algorithms by size, so no single shape shows the peak rate."""
CALLS = 20  # of each shape at most
LARGE_SHAPES = ((8192, 8192, 8192),)
"""The product measured on a GPU without a data sheet in conf/hardware."""


@dataclass(frozen=True)
class Peak:
    """The peak FLOP/s of matrix products, and the source of the figure."""

    flops: float
    source: str
    measured: bool = False

    def again(self, device: torch.device, precision: str) -> Peak:
        """Measure the peak again and keep the higher one: other programs may have held the cores."""
        if not self.measured:
            return self
        return replace(self, flops=max(self.flops, measure_peak(device, precision)))

    def share(self, flops: float) -> float | None:
        """Compute the MFU, the ratio of `flops` per second to the peak. None if it exceeds 1, because the peak was then
        measured too low."""
        share = flops / self.flops
        return share if share <= 1 else None

    def __str__(self) -> str:
        return f"{self.flops / 1e12:,.2f} TFLOP/s ({self.source})"


def find_peak(device: torch.device, precision: str) -> Peak:
    """Read a GPU's peak from its data sheet in conf/hardware. Without one, and on a CPU, measure it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        card = of_device(name)
        if card is not None and precision in card.tflops:
            return Peak(card.flops(precision), f"{precision} data sheet, {name}")
    products = "fp32" if precision == "fp32" else f"{precision} or fp32"
    return Peak(measure_peak(device, precision), f"{products} products, measured", measured=True)


def measure_peak(device: torch.device, precision: str) -> float:
    """Measure the best rate of matrix products, in float32 or the given precision, in FLOP/s.

    The higher rate counts: a training step in bf16 computes some products in float32, and a CPU may be faster in
    float32.
    """
    shapes = LARGE_SHAPES if device.type == "cuda" else SHAPES
    dtypes = {torch.float32, torch.bfloat16 if precision == "bf16" else torch.float32}
    return max(measure_product_rate(device, dtype, shapes) for dtype in dtypes)


def measure_product_rate(
    device: torch.device, dtype: torch.dtype, shapes: Iterable[ProductShape], spend: float | None = None
) -> float:
    """Measure the best rate of products of these shapes, in FLOP/s, with torch's present number of threads.

    Takes about `spend` seconds (default: MEASURED_FOR): stops before a shape that would exceed the time left.
    """
    best, until = 0.0, time.perf_counter() + (MEASURED_FOR if spend is None else spend)
    for rows, inner, columns in shapes:
        work = 2 * rows * inner * columns
        if best and time.perf_counter() + 2 * work / best > until:
            break
        a = torch.ones(rows, inner, device=device, dtype=dtype)
        b = torch.ones(columns, inner, device=device, dtype=dtype).t()  # as a layer's weight: other layouts may be slow
        out = torch.mm(a, b)  # warm-up: the first call has one-off costs
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


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Clock:
    """Measures the time spent on training steps, without pauses."""

    seconds: float = 0.0
    pace: float = 0.0  # recent tokens a second
    _tokens: int = 0
    _since: float = 0.0

    def start(self, tokens: int) -> None:
        """Start the clock, with `tokens` tokens seen so far."""
        self._tokens, self._since = tokens, time.perf_counter()

    def lap(self, tokens: int) -> float:
        """Compute the tokens a second since the last lap. Call it only after waiting for the device."""
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
    """Measurements of the training process: its pace, the peak FLOP/s for MFU, its threads, and its memory.
    `peak_memory` stays None if the memory held before is unknown (`held` is None)."""

    device: torch.device
    precision: str
    peak: Peak
    watch: ThreadWatch
    free: int | None  # bytes of memory that were free before the model was built
    held: int | None  # bytes held at that time
    clock: Clock = field(default_factory=Clock)
    peak_memory: int | None = None  # peak of the first steps, in bytes above `held`

    def measure_peak_again(self) -> None:
        """Measure the peak FLOP/s again, unless it is from a data sheet."""
        self.peak = self.peak.again(self.device, self.precision)

    def note_memory(self) -> None:
        """Record the peak memory so far."""
        if self.held is not None:
            self.peak_memory = read_peak_since(self.device, self.held)

    def follow(self, speed: float) -> ThreadChoice | None:
        """Choose the number of threads again if the pace has fallen, or may have recovered."""
        if choice := self.watch.follow(speed):
            self.measure_peak_again()
        return choice
