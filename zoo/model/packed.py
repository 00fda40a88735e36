# B batch, T tokens, W width of a convolution, D model width
"""Places, counts and convolutions within packed documents: runs of equal numbers along a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Step


def find_run_starts(numbers: Tensor) -> Tensor:
    """True at the first place of every run of equal numbers along the last dimension."""
    return F.pad(numbers[..., 1:] != numbers[..., :-1], (1, 0), value=True)


def find_run_firsts(numbers: Tensor) -> Tensor:
    """For each place of the last dimension, the first place of the run of equal numbers it is in."""
    places = torch.arange(numbers.shape[-1], device=numbers.device).expand_as(numbers)
    return torch.where(find_run_starts(numbers), places, 0).cummax(-1).values


def count_in_run(numbers: Tensor, real: Tensor) -> Tensor:
    """For each place [B, T], how many real tokens the run of equal numbers has that it is in."""
    runs = find_run_starts(numbers).long().cumsum(-1)  # B T: 1, 1, 2, 2, 2, 3, …
    last = torch.searchsorted(runs, runs, right=True) - 1  # where each place's run ends
    counted = real.long().cumsum(-1)
    before = counted - real.long()
    return counted.gather(-1, last) - before.gather(-1, find_run_firsts(numbers))


def convolve_both_ways(conv: Any, x: Tensor, step: Step, width: int) -> Tensor:
    """Apply a convolution of an odd `width` to x [B, T, D], as many tokens before each as after it. It reads neither
    padding nor another packed document."""
    side = width // 2
    if step.real is not None:
        x = x.masked_fill(~step.real[..., None], 0)
    padded = F.pad(x, (0, 0, side, side))
    if step.documents is None:
        return conv(padded)  # B T D
    # Neighbours differ from token to token in what they may show, so that each token has a window of its own.
    windows = padded.unfold(1, width, 1).transpose(2, 3)  # B T W D
    documents = F.pad(step.documents, (side, side), value=-1).unfold(1, width, 1)  # B T W
    windows = windows.masked_fill((documents != step.documents[..., None])[..., None], 0)
    return conv(windows.flatten(0, 1)).reshape(x.shape)  # B T D
