# B rows, T new tokens, P pages of a row
"""Page tables: choose the page size, and lay out the tensors that hold the slots and pages of a pass's rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from zoo.kernels.base import AttentionQuery, Machine
from zoo.kernels.dispatch import KERNELS, order
from zoo.lazy import Tensor, torch

PAGES = (16, 256)
"""Page sizes in tokens: 16 suits flash-attn 3 and 4, 256 flash-attn 2."""

COPIES = 100
"""Rank of a kernel that copies keys out of pages, behind all others."""

PAGE = PAGES[0]
"""Default page size of the engine in tokens."""


def choose_page(asks: Iterable[AttentionQuery], machine: Machine, kernel: str = "auto") -> int:
    """Choose the page size in tokens at which pages are read in place by the kernels that `auto` tries first: the least
    sum of their ranks over `asks` (decoding, with `AttentionQuery.lengths`). On a tie, choose the smaller size.
    `kernel` names the kernel that will be used."""
    asks = list(asks)
    return min(PAGES, key=lambda page: sum(_rank(replace(ask, page=page), machine, kernel) for ask in asks))


def reads_pages(ask: AttentionQuery, machine: Machine, kernel: str = "auto") -> bool:
    """Whether the kernel that serves `ask` reads pages in place. Other kernels get a copy of each row's keys."""
    return _rank(ask, machine, kernel) < COPIES


def _rank(ask: AttentionQuery, machine: Machine, kernel: str) -> int:
    """Return the position, among the kernels in the order they are tried, of the first that takes `ask`. COPIES if
    none does, or if that kernel cannot read pages in place."""
    able = order(ask, machine) if kernel == "auto" else iter([KERNELS[kernel]] if kernel in KERNELS else [])
    ranked = (
        (place, each) for place, each in enumerate(able) if each.refuses(ask, machine) is None and not each.broken
    )
    place, found = next(ranked, (COPIES, None))
    return place if found is not None and found.pages_in_place else COPIES


# ---------------------------------------------------------------- the rows of a pass


class PagedShape(NamedTuple):
    """The shape of a pass: B rows of T new tokens, and the page table's width P for each group. With `varlen` the rows
    are concatenated, and T is the number of new tokens of all rows."""

    rows: int
    new: int
    pages: tuple[int, ...]
    varlen: bool = False

    @property
    def tokens(self) -> int:
        """Number of new tokens of all rows."""
        return self.new if self.varlen else self.rows * self.new


class PassTensors:
    """The integers of a pass as tensors: `starts` [B], cached tokens of each row; `counts` [B], new tokens of each row,
    without padding; `slots` [B], the rows' state slots.
    `groups` has for each group: the slot of each new token [B·T] (with `varlen` [T]); the token index of the first slot
    of each row's first page [B]; the number of slots to read, new tokens included [B]; and the page table [B, P].

    All are views of one int64 tensor: a pass costs one copy from the host, and a recorded step reads other rows from
    the same memory.
    """

    def __init__(self, flat: Tensor, shape: PagedShape) -> None:
        rows = shape.rows
        sizes = [rows, rows, rows]
        for width in shape.pages:
            sizes += [shape.tokens, rows, rows, rows * width]
        self.starts, self.counts, self.slots, *parts = flat.split(sizes)
        groups = (parts[at : at + 4] for at in range(0, len(parts), 4))
        self.groups = [(*others, table.view(rows, -1)) for *others, table in groups]


def as_tensor(numbers: array[int]) -> Tensor:
    """View the integers of a pass as a tensor on the host, without a copy."""
    return torch.frombuffer(numbers, dtype=torch.int64)
