"""Lists of numbers of a position scheme (ALiBi's slopes, LongRoPE's factors) as tensors on a device."""

from __future__ import annotations

from typing import Any

from zoo.lazy import torch

KEPT: dict[Any, Any] = {}
"""Tensors by their numbers and device."""


def constants(numbers: tuple[float, ...], device: Any) -> Any:
    """The numbers as a float32 tensor on a device, copied there once.

    A copy from the host makes the host wait, and would come with every token while decoding. Nothing is kept where
    operations are traced or faked: what comes of them there is no tensor that another pass could use.
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
