# B batch, T tokens
"""Find places and counts within packed documents: runs of equal document numbers along a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def find_run_starts(numbers: Tensor) -> Tensor:
    """Return True at the first place of each run of equal numbers along the last axis."""
    return F.pad(numbers[..., 1:] != numbers[..., :-1], (1, 0), value=True)


def find_run_firsts(numbers: Tensor) -> Tensor:
    """Return for each place of the last axis the first place of its run of equal numbers."""
    places = torch.arange(numbers.shape[-1], device=numbers.device).expand_as(numbers)
    return torch.where(find_run_starts(numbers), places, 0).cummax(-1).values


def count_in_run(numbers: Tensor, real: Tensor) -> Tensor:
    """Return for each place [B, T] the number of real tokens in its run of equal numbers."""
    runs = find_run_starts(numbers).long().cumsum(-1)  # B T: 1, 1, 2, 2, 2, 3, …
    last = torch.searchsorted(runs, runs, right=True) - 1  # where each place's run ends
    counted = real.long().cumsum(-1)
    before = counted - real.long()
    return counted.gather(-1, last) - before.gather(-1, find_run_firsts(numbers))
