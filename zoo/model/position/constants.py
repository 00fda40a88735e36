"""Numbers of a position scheme (RoPE's frequencies, ALiBi's slopes, LongRoPE's factors) as tensors on a device."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from zoo.lazy import Tensor, torch

T = TypeVar("T")

KEPT: dict[tuple[Hashable, str], Any] = {}
"""Tensors by (key, device); a key is for example the numbers themselves."""


def place_constants(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Make a float32 tensor of the numbers on a device, once for all passes.

    Otherwise each token would need a copy to the device, for which the host waits.
    """
    return keep_constant(numbers, device, lambda: torch.tensor(numbers, dtype=torch.float32, device=device))


def keep_constant(key: Hashable, device: torch.device, make: Callable[[], T]) -> T:
    """Make a constant with `make` and cache it by key and device, for all passes.

    Under tracing or with fake tensors nothing is cached, because the next pass could not use a fake tensor.
    """
    if torch.compiler.is_compiling() or _under_a_mode():
        return make()
    place = (key, str(device))
    if place not in KEPT:
        with torch.inference_mode(False):  # a pass that trains may use it next
            KEPT[place] = make()
    return KEPT[place]


def _under_a_mode() -> bool:
    """Whether a dispatch mode (fake tensors, tracing, counting) sees each operation."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return _get_current_dispatch_mode() is not None
