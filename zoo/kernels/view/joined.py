# B batch, M a memory's keys, S the tokens' own keys, N slots of a pool
"""Keys of two views in one softmax: an encoder's before the tokens' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.kernels.view.base import KeyView, Segment
from zoo.kernels.view.pooled import PooledView
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.mask import Mask


def join_views(memory: KeyView, own: KeyView, device: torch.device, pool: Callable[..., PooledView]) -> KeyView:
    """Join two views to one of the keys that `join_keys` makes. If rows are not alike in either, those of both lie end
    to end in a pool; `pool` makes the view of its segments and slots."""
    if not isinstance(own, PooledView) and not isinstance(memory, PooledView):
        view = KeyView(own.mask.join(memory.mask, device), own.index, own.bias, own.slots)
    else:
        rows, segments, first = max(len(memory.segments), len(own.segments)), [], 0
        for theirs, mine in zip(_list_masks(memory, rows), _list_masks(own, rows), strict=True):
            mask = mine.join(theirs, device)
            segments.append(Segment(mask, [(first, first + mask.n_keys)]))
            first += mask.n_keys
        view = pool(segments, own.slots)
    view.joins = memory, own
    return view


def _list_masks(view: KeyView, rows: int) -> list[Mask]:
    """List each row's mask, of rows in one tensor as well."""
    return [each.mask for each in view.segments] if isinstance(view, PooledView) else view.mask.by_row(rows)


def join_keys(step: Any, memory: tuple[Tensor, ...], own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put a memory's keys and values, [B, M, …] or pools, before those of the tokens, [B, S, …] or pools, for the view
    of a layer's step. Where rows are not alike, the pool [N, …] that is made has those of each end to end."""
    view, found = step.keys, []
    for both in zip(memory, own, strict=True):
        theirs, mine = (each.read(held) for each, held in zip(view.joins, both, strict=True))
        if view.pooled:
            rows = zip(_list_rows(theirs), _list_rows(mine), strict=True)
            found.append(torch.cat([part for pair in rows for part in pair]))
        else:
            found.append(torch.cat((*theirs, *mine), 1))
    return tuple(found)


def _list_rows(read: list[Tensor]) -> list[Tensor]:
    """List what each row has [S, …] of what a view reads."""
    return list(read[0]) if len(read) == 1 else [each[0] for each in read]
