# B batch, T tokens, W width of a convolution, D model width
"""Convolutions within packed documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.lazy import F, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.model.step import Step


def convolve_both_ways(conv: Callable[[Tensor], Tensor], x: Tensor, step: Step, width: int) -> Tensor:
    """Apply a convolution of an odd `width`, centred on each token, to x [B, T, D]: [B, T, D]. It reads neither padding
    nor another packed document."""
    side = width // 2
    if step.real is not None:
        x = x.masked_fill(~step.real[..., None], 0)
    padded = F.pad(x, (0, 0, side, side))
    if step.documents is None:
        return conv(padded)  # B T D
    # Which neighbours count differs from token to token, so each token gets a window of its own.
    windows = padded.unfold(1, width, 1).transpose(2, 3)  # B T W D
    documents = F.pad(step.documents, (side, side), value=-1).unfold(1, width, 1)  # B T W
    windows = windows.masked_fill((documents != step.documents[..., None])[..., None], 0)
    return conv(windows.flatten(0, 1)).reshape(x.shape)  # B T D
