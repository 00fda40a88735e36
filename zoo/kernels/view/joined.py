# B batch, M a memory's keys, S the tokens' own keys, N slots of a pool
"""Attend to the keys of two views in one softmax: an encoder's keys, then the tokens' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.kernels.view.base import KeySegment, KeyView
from zoo.kernels.view.pooled import PooledView
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask


def join_views(memory: KeyView, own: KeyView, device: torch.device, pool: Callable[..., PooledView]) -> KeyView:
    """Join the views of an encoder's keys (`memory`) and of the tokens' `own` keys to one view of the keys that
    `join_keys` returns. If either view is pooled, the joined keys lie in a new pool, and `pool(segments, slots)` makes
    their view."""
    if not isinstance(own, PooledView) and not isinstance(memory, PooledView):
        view = KeyView(own.mask.join(memory.mask, device), own.index, own.bias, own.slots)
    else:
        rows, segments, first = max(len(memory.segments), len(own.segments)), [], 0
        for theirs, mine in zip(_list_masks(memory, rows), _list_masks(own, rows), strict=True):
            mask = mine.join(theirs, device)
            segments.append(KeySegment(mask, [(first, first + mask.n_keys)]))
            first += mask.n_keys
        view = pool(segments, own.slots)
    view.joined = memory, own
    return view


def _list_masks(view: KeyView, rows: int) -> list[Mask]:
    return [each.mask for each in view.segments] if isinstance(view, PooledView) else view.mask.by_row(rows)


def join_keys(step: Any, memory: tuple[Tensor, ...], own: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put an encoder's keys and values (`memory`, [B, M, …] or pools) before the tokens' `own` ([B, S, …] or pools),
    for the view `step.keys`. For a pooled view the result is a new pool [N, …] in which rows follow one another."""
    view, found = step.keys, []
    for both in zip(memory, own, strict=True):
        theirs, mine = (each.read(held) for each, held in zip(view.joined, both, strict=True))
        if view.pooled:
            rows = zip(_list_rows(theirs), _list_rows(mine), strict=True)
            found.append(torch.cat([part for pair in rows for part in pair]))
        else:
            found.append(torch.cat((*theirs, *mine), 1))
    return tuple(found)


def _list_rows(read: list[Tensor]) -> list[Tensor]:
    """Split what a view reads (`KeyView.read`) into each row's keys [S, …]."""
    return list(read[0]) if len(read) == 1 else [each[0] for each in read]
