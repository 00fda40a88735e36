"""Time calls on a device, measure the device's limits, and describe the machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from zoo.lazy import torch
from zoo.run.cuda_start import read_driver_version
from zoo.run.environment import find_version
from zoo.run.repository import read_commit

PACKAGES = (
    *("torch", "triton", "flash-attn", "flash-attn-3", "flash-attn-4", "kernels"),
    *("liger-kernel", "quack-kernels", "torchao", "vllm"),
)

WARM = 3  # untimed calls
LEAST, MOST = 5, 200  # timed calls
STRETCH = 5  # LEAST calls may take up to STRETCH × `spend` seconds; of slower calls there are fewer

QUICK_SIDES, SIDES = (64, 128, 256, 512), (4096, 8192)
"""Sides of the timed square matrix products. A library chooses its algorithm by size, so several sizes are timed."""


@dataclass(frozen=True)
class Limits:
    """A device's measured limits: FLOP/s of square products by torch dtype, and bytes per second of a copy (bytes read
    plus bytes written)."""

    flops: dict[str, float]
    copy: float


def time_call(run: Callable[[], Any], device: str, *, spend: float = 0.2) -> float:
    """Time a call: the median seconds of as many calls as fit in `spend` seconds, at least LEAST (fewer if calls are
    slow) and at most MOST. On CUDA the time is between two events on the stream: the longer of kernel time and launch
    time."""
    start = time.perf_counter()
    for _ in range(WARM):
        run()
        synchronize(device)
        if time.perf_counter() - start > spend:
            break
    start = time.perf_counter()
    run()
    synchronize(device)
    taken = time.perf_counter() - start
    fewest = min(LEAST, max(int(STRETCH * spend / taken), 1))
    calls = min(max(int(spend / taken), fewest), MOST)
    if device == "cuda":
        return statistics.median(_time_by_events(run, calls))
    return statistics.median(_time_by_clock(run, calls))


def time_passes(
    run: Callable[..., Any], inputs: Sequence[Any], slopes: Sequence[Any], device: str, *, quick: bool
) -> dict[str, float]:
    """Time a function of tensors in seconds: `forward` without gradients and, given the gradients of its outputs
    (`slopes`), `both` passes. With `slopes` the inputs require gradients afterwards."""
    spend = 0.01 if quick else 0.1

    def forward() -> None:
        with torch.no_grad():
            run(*inputs)

    def both() -> None:
        y = run(*inputs)
        torch.autograd.grad(y if isinstance(y, tuple) else (y,), list(inputs), slopes)

    times = {"forward": time_call(forward, device, spend=spend)}
    if slopes:
        for each in inputs:
            each.requires_grad_()
        times["both"] = time_call(both, device, spend=spend)
    return times


def _time_by_events(run: Callable[[], Any], calls: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    marks[-1].synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def _time_by_clock(run: Callable[[], Any], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure_limits(device: str, *, quick: bool = False) -> Limits:
    """Measure the FLOP/s of square products up to 8192 wide and the bytes per second of copying 1 GiB. With `quick`,
    products are up to 512 wide and 64 MiB are copied."""
    names = {"float32": "fp32", "bfloat16": "bf16"}
    flops = {name: measure_products(dtype, device, quick=quick) for name, dtype in names.items()}
    return Limits(flops, measure_copy(device, quick=quick))


def measure_copy(device: str, *, quick: bool = False) -> float:
    """Measure the bandwidth of a copy within the device's memory, in bytes read plus bytes written per second."""
    size = 64 << 20 if quick else 1 << 30
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / time_call(lambda: b.copy_(a), device)


def measure_products(dtype: str, device: str, *, quick: bool = False) -> float:
    """Measure the FLOP/s of the fastest square product. `dtype` is named as in a data sheet: fp32, tf32, bf16, fp16 or
    fp8 (E4M3, accumulated in float32, output in bfloat16)."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        return max(_product_rate(side, dtype, device) for side in (QUICK_SIDES if quick else SIDES))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _product_rate(side: int, name: str, device: str) -> float:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
    dtype = kinds.get(name, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if name == "fp8":
        one = torch.ones((), device=device)
        scaled_mm: Any = torch._scaled_mm  # type: ignore[reportPrivateImportUsage]
        product = partial(scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    else:
        product = partial(torch.mm, a, b.t(), out=torch.empty_like(a))
    return 2 * side**3 / time_call(product, device, spend=0.1)


# ---------------------------------------------------------------- names


def describe_machine(device: str) -> dict[str, Any]:
    """Return the device's description, the versions of packages, and zoo's commit."""
    import zoo

    found: dict[str, Any] = {"device": device, "name": name_device(device)}
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "capability": [about.major, about.minor],
            "memory": about.total_memory,
            "driver": read_driver_version(),
        }
    versions = {name: find_version(name) for name in PACKAGES} | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    versions |= {"zoo": zoo.__version__, "python": platform.python_version()}
    checkout = Path(__file__).parents[3]
    return found | {"versions": versions, "commit": read_commit(checkout) if (checkout / ".git").exists() else None}


def name_device(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else f"{platform.machine()} CPU"
