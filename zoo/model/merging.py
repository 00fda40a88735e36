# B batch, M an encoder's tokens, S the tokens' own keys, N slots of a pool
"""Merged attention in one forward pass: an encoder's keys before a layer's own, seen in one softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.kernels.mask import Mask
from zoo.kernels.rows import PoolRow, PoolRows
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.scene import Scene
    from zoo.model.step import Step


OWN_ROWS = "own_rows"
"""What `Step.extra` calls the rows of a layer's own keys, where those that it attends to are of an encoder's, too."""


def merge_masks(scene: Scene, step: Step) -> None:
    """Let attention see what its `cross` step reads before its own keys: mask and rows become those of both. Rows that
    are not alike lie end to end in the pool that `join_memory` makes."""
    cross = step.cross
    assert cross is not None
    step.merges = True
    if step.rows is None and cross.rows is None:
        step.mask = step.mask.join(cross.mask, scene.device)
        step.pages, step.page = None, 0
        return
    joined, first = [], 0
    for theirs, mine in zip(_list_rows(scene, cross), _list_rows(scene, step), strict=True):
        mask = mine.mask.join(theirs.mask, scene.device)
        joined.append(PoolRow(mine.count, [(first, first + mask.n_keys)], mask))
        first += mask.n_keys
    step.extra[OWN_ROWS], step.rows = step.rows, scene.pool_rows(joined)


def _list_rows(scene: Scene, step: Step) -> list[PoolRow]:
    """The rows of a step, with a mask each: those of one tensor as well."""
    if step.rows is not None:
        return step.rows.rows
    assert scene.cache is not None
    mask, rows = step.mask, []
    for number in range(len(scene.cache.rows)):
        padding = None if mask.padding is None else mask.padding[number : number + 1]
        own = Mask(mask.n_queries, mask.n_keys, causal=mask.causal, window=mask.window, padding=padding)
        rows.append(PoolRow(mask.n_queries, [], own))
    return rows


def join_memory(step: Step, own: tuple[Tensor, ...], memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put an encoder's keys and values [B, M, …] before those of the tokens [B, S, …], as `Step.recall` and
    `Step.remember` give them. Where rows are not alike, the pool [N, …] that is made has those of each end to end."""
    assert step.cross is not None
    if step.rows is not None:
        sides = zip(_read_rows(step.cross.rows, memory), _read_rows(step.extra[OWN_ROWS], own), strict=True)
        return tuple(torch.cat([part for pair in zip(*each, strict=True) for part in pair]) for each in sides)
    both = zip(_gather_pages(step.cross, memory), _gather_pages(step, own), strict=True)
    return tuple(torch.cat(each, 1) for each in both)


def _gather_pages(step: Step, held: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy rows that are read by page [B, S, …] out of their pools; others are as they are."""
    if step.where is None or step.where.table is None:
        return held
    table, page = step.where.table.long(), step.where.page
    return tuple(pool.unflatten(0, (-1, page))[table].flatten(1, 2) for pool in held)


def _read_rows(rows: PoolRows | None, held: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """List what each row has [S, …] of tensors [B, S, …], or of the pools [N, …] in which `rows` lie."""
    return [list(each) if rows is None else [row.read(each)[0] for row in rows.rows] for each in held]
