# B rows, T new tokens, P pages of a row
"""Rows that are read by page table: how large a page is, and the tensors that say where the rows of a pass lie."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from zoo.kernels.base import Ask, Machine
from zoo.kernels.dispatch import KERNELS, order
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

PAGES = (16, 256)
"""Sizes in tokens: what flash-attn 3 and 4 read, and what flash-attn 2 does."""

PAGE = PAGES[0]
"""Tokens of a page of Zoo's own engine, unless a kernel reads larger ones alone."""


def choose_page(asks: Iterable[Ask], machine: Machine, kernel: str = "auto") -> int:
    """The page size at which most of these asks, of decoding with `Ask.lengths`, are read without a copy; the smaller
    one where that is no different. `kernel` is the one that will be used."""
    asks = list(asks)
    return max(PAGES, key=lambda page: sum(reads_pages(replace(ask, page=page), machine, kernel) for ask in asks))


def reads_pages(ask: Ask, machine: Machine, kernel: str = "auto") -> bool:
    """Whether the kernel that serves an ask with a page size reads the pages where they lie. Others copy the keys of
    each row out of them first."""
    able = order(ask, machine) if kernel == "auto" else iter([KERNELS[kernel]] if kernel in KERNELS else [])
    found = next((each for each in able if each.refuses(ask, machine) is None), None)
    return found is not None and found.pages_in_place


# ---------------------------------------------------------------- the rows of a pass


class PassShape(NamedTuple):
    """The shape of a pass: B rows of T new tokens, and for each group P, the width of its page table."""

    rows: int
    new: int
    pages: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers a pass of this shape has."""
        return self.rows * sum((2, *(2 + self.new + pages for pages in self.pages)))


class PassTensors:
    """The numbers of a pass as tensors: `starts` [B], the tokens that rows hold; `slots` [B], those of their states.
    `groups` say where rows lie in the pools of each group: the slot of each new token [B·T]; the token in the first
    slot of a row's first page [B]; how many of the table's slots are read, the new tokens' included [B]; and the table
    of each row's pages [B, P].

    They are views of one int64 tensor: a pass costs one copy from the host, and a recorded step reads other rows from
    the same memory.
    """

    def __init__(self, flat: Tensor, shape: PassShape) -> None:
        rows, new, pages = shape
        sizes = [rows, rows]
        for width in pages:
            sizes += [rows * new, rows, rows, rows * width]
        self.starts, self.slots, *parts = flat.split(sizes)
        groups = (parts[at : at + 4] for at in range(0, len(parts), 4))
        self.groups = [(*others, table.view(rows, -1)) for *others, table in groups]


def as_tensor(numbers: array[int]) -> Tensor:
    """The numbers of a pass as a tensor on the host, which shares their memory."""
    return torch.frombuffer(numbers, dtype=torch.int64)
