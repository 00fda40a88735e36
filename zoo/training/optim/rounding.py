"""Round float32 to bfloat16 at random, so that the mean of many roundings is the value."""

from __future__ import annotations

import torch
from torch import Tensor

DROPPED = 16
"""Bits of a float32 that bfloat16 has not."""


def copy_rounded(target: Tensor, value: Tensor) -> None:
    """Copy float32 values to a bfloat16 tensor of the same shape by stochastic rounding (Gupta et al., 2015).

    A value between two neighbours goes to the larger (in size) with the chance that is its distance from the smaller,
    to all 16 bits: 1 + 2⁻¹⁰ is an eighth of the way from 1 to 1 + 2⁻⁷, and becomes that once in eight times. So an
    update far below a weight's last place moves it on average, where rounding to nearest never does.

    `value` is contiguous and is overwritten. Numbers that bfloat16 has, infinities and NaN stay what they are. Draws
    from the device's own random generator, whose state a checkpoint holds.
    """
    drawn = torch.empty(-(-value.numel() // 4), dtype=torch.int64, device=value.device)
    drawn.random_(-(2**63), None)  # all 64 bits: four numbers of 16, from −2¹⁵ on
    nan = find_nan(value)
    bits = value.view(torch.int32)
    bits.add_(drawn.view(torch.int16)[: value.numel()].view(value.shape))
    bits.add_(1 << (DROPPED - 1)).bitwise_and_(-(1 << DROPPED))
    target.copy_(value if nan is None else value.masked_fill_(nan, torch.nan))


def find_nan(value: Tensor) -> Tensor | None:
    """Find the values that are no number, whose bits a carry would make into a number. None where a CPU sees at once
    that there are none; another device is not waited for."""
    if value.device.type == "cpu" and bool(value.sum().isfinite()):
        return None
    return value.isnan()
