"""Measure which dtype computes fastest on this CPU.

bfloat16 halves the memory of weights, and is faster on a CPU with instructions for it (AVX-512 BF16, AMX). On a CPU
without them (AVX2 only), torch computes element by element: 5 to 15 times slower than float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from zoo.lazy import nn, torch
from zoo.paths import is_first_time
from zoo.run.threads import keep_threads, use_fastest_threads

if TYPE_CHECKING:
    from zoo.kernels import Machine

SPEND = 0.1  # seconds per comparison; at least one lap of each dtype
ROWS, WIDTH, STEPS = 32, 1024, 4  # of a lap: a short prompt times one weight, then single tokens
MARGIN = 1.25  # a dtype is replaced if it is more than this factor slower than float32; probes are this inexact


BF16_FROM = (8, 0)
"""The compute capability from which tensor cores multiply in bfloat16 (Ampere)."""


def multiplies_in_bf16(machine: Machine) -> bool:
    """Whether a machine is a GPU whose tensor cores multiply in bfloat16."""
    return machine.capability is not None and machine.capability >= BF16_FROM


def spell_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def measure_slowdown(dtype: torch.dtype, *, training: bool = False) -> float:
    """Measure how many times longer matrix products take in `dtype` than in float32 on this CPU. The products are those
    of generation, or with `training` those of a training step. Measured once a process."""
    laps = {each: _training_lap(each) if training else _lap(each) for each in (torch.float32, dtype)}
    best: dict[torch.dtype, float] = dict.fromkeys(laps, float("inf"))
    with keep_threads():
        torch.set_num_threads(1)  # several threads would also time their waiting for a busy core
        end = time.perf_counter() + SPEND
        while True:
            for each, lap in laps.items():
                start = time.perf_counter()
                lap()
                best[each] = min(best[each], time.perf_counter() - start)
            if time.perf_counter() >= end:
                return best[dtype] / best[torch.float32]


def _lap(dtype: torch.dtype) -> Callable[[], None]:
    from zoo.run.layer import multiply

    weight = torch.nn.Parameter(torch.ones(WIDTH, WIDTH, dtype=dtype), requires_grad=False)
    prompt, token = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(1, WIDTH, dtype=dtype)

    def lap() -> None:
        with torch.inference_mode():
            multiply(prompt, weight, None)
            for _ in range(STEPS):
                multiply(token, weight, None)

    return lap


def _training_lap(dtype: torch.dtype) -> Callable[[], None]:
    x, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)

    def lap() -> None:
        with torch.inference_mode():
            y = torch.mm(x, weight.t())
            torch.mm(y, weight)  # the gradient of x
            torch.mm(y.t(), x)  # the gradient of the weight

    return lap


def is_slow(dtype: torch.dtype, device: torch.device, *, training: bool = False) -> bool:
    """Whether a 16-bit dtype is more than `MARGIN` times slower than float32 on a CPU. False on other devices."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return measure_slowdown(dtype, training=training) > MARGIN


def describe_slow_dtype(dtype: torch.dtype, device: torch.device, option: str, *, training: bool = False) -> str | None:
    """Return a line that says how slow `dtype`, set by `option`, is on this device; None if the dtype is not slow."""
    if not is_slow(dtype, device, training=training):
        return None
    times = measure_slowdown(dtype, training=training)
    return f"{option} is {times:.1f} times slower than fp32 on this CPU"


def use_fastest_dtype(model: nn.Module) -> str | None:
    """Convert a 16-bit model to float32 in place if that is faster. Returns a line for the user, or None if 16 bits are
    not slow. No weight changes its value: float32 holds all values of bfloat16 and float16. If float32 weights would
    not fit in memory the model stays as it is, and the line says so."""
    from zoo.run.builder import read_free_memory

    weight = next(model.parameters())
    if not is_slow(weight.dtype, weight.device):
        return None
    name, times = spell_dtype(weight.dtype), measure_slowdown(weight.dtype)
    slower = f"{times:.1f} times slower than float32 on this CPU"
    need, free = sum(4 * each.numel() for each in model.parameters()), read_free_memory(weight.device)
    if free is not None and need > free:
        return f"computes in {name}, {slower}: float32 weights need {need / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
    with torch.inference_mode(False):  # inference tensors could not be trained
        model.float()
    return f"computes in float32: the weights' {name} is {slower}"


def settle_cpu(
    model: nn.Module, tell: Callable[[str], object], *, dtype: str | None = None, keep: bool = False
) -> None:
    """Set the fastest number of threads, and convert a model on a CPU to its fastest dtype.

    `tell` is called with a line for each change; the line on the number of threads is printed once per machine. If the
    user chose the dtype, `dtype` is the option's text: the model keeps its dtype, and `tell` gets a line if it is slow.
    With `keep` (float8 weights) the model also keeps its dtype, and `tell` gets no line about it.
    """
    weight = next(model.parameters())
    if (choice := use_fastest_threads(weight.device)) and is_first_time("threads"):
        tell(f"computes with {choice}")
    if keep:
        return
    line = use_fastest_dtype(model) if dtype is None else describe_slow_dtype(weight.dtype, weight.device, dtype)
    if line is not None:
        tell(line)
