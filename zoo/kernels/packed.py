# B batch, T tokens, N tokens of all rows end to end
"""Work with packed documents, which are runs of equal numbers along a row: find places, count tokens. Also concatenate
and split rows."""

from __future__ import annotations

from zoo.lazy import F, Tensor, torch


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


def split_rows(x: Tensor, cu_seqlens: Tensor, width: int) -> Tensor:
    """Split concatenated rows [1, N, …] into padded rows [B, T, …], T = `width`. A row's tokens are the last of its T;
    values before them are arbitrary."""
    columns = torch.arange(-width, 0, device=x.device)
    return x[0, (cu_seqlens[1:, None] + columns).clamp(min=0)]


def join_rows(x: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Undo `split_rows`: [B, T, …] → [1, N, …], N = `total`."""
    token = torch.arange(total, device=x.device)
    row = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    return x[row, x.shape[1] + token - cu_seqlens[1:][row]][None]
