"""Lists of numbers of a position scheme (ALiBi's slopes, LongRoPE's factors) as tensors on a device."""

from __future__ import annotations

from typing import Any

from zoo.lazy import torch

KEPT: dict[Any, Any] = {}
"""Tensors by their numbers and device."""


def place_constants(numbers: tuple[float, ...], device: Any) -> Any:
    """Make a float32 tensor of the numbers on a device, once for all passes.

    A copy from the host makes the host wait, and would otherwise happen for every token. While operations are traced or
    faked nothing is kept, because a fake tensor is of no use to the next pass.
    """
    if torch.compiler.is_compiling() or _under_a_mode():
        return torch.tensor(numbers, dtype=torch.float32, device=device)
    key = (numbers, str(device))
    if key not in KEPT:
        with torch.inference_mode(False):  # a pass that trains may use it next
            KEPT[key] = torch.tensor(numbers, dtype=torch.float32, device=device)
    return KEPT[key]


def _under_a_mode() -> bool:
    """Whether a dispatch mode (fake tensors, tracing, counting) sees each operation."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return _get_current_dispatch_mode() is not None
