"""Prepare a pass that reads by page table, on the host: find the slots of new tokens, and each row's pages."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from zoo.cache.cached_row import CachedRow, list_slots
from zoo.cache.page_pool import OutOfPages
from zoo.cache.pool_store import LayerGroup, Store
from zoo.errors import ConfigError
from zoo.kernels.view.page_tables import PagedShape


class PlacedRow(NamedTuple):
    """The slots and pages of a row in a group: the slots of its new tokens (`write`), the `first` token read (at a
    page's start), the number of slots read (`length`), and their `pages`."""

    write: list[int]
    first: int
    length: int
    pages: list[int]


def place_row(row: CachedRow, number: int, group: LayerGroup, count: int, new: int) -> PlacedRow:
    """Make room for a row's next `count` tokens in a group, in a pass of `new` columns, and return their place.

    With pages of 4, a window of 3 and 9 tokens held, the next token (number 9) sees tokens 7 to 9: the first page is
    that of tokens 4 to 7, and 6 slots are read, of which the mask hides 3. Padding counts as tokens after the row's
    own. A slot that stands for several tokens is written when the last of them comes.
    """
    page, start, stop, scratch = row.store.page, row.length, row.length + count, row.store.scratch(number)
    if group.cross:
        return PlacedRow([scratch] * new, 0, row.source, row.pages[number])
    if not group.full:
        row.slide(number, group.first_seen(max(0, start - row.store.undone)), stop)
    make_room(row, number, start, stop)
    write, before = list_slots(row.runs(number, start, stop)), row.dropped[number]
    begin, held = group.first_seen(start) // page, group.count_slots(stop)
    length = start + new - begin * page if group.rate == 1 else held
    pages = row.pages[number][begin - before : -(-held // page) - before]
    return PlacedRow(write + [scratch] * (new - len(write)), begin * page, length, pages)


def make_room(row: CachedRow, number: int, begin: int, stop: int) -> None:
    """Take pages for a row's tokens from `begin` to `stop` in a group. Raises ConfigError if no page is left."""
    if not row.pages[number] and not row.store.groups[number].full:
        row.dropped[number] = begin // row.store.page
    try:
        row.reserve(number, stop)
    except OutOfPages as error:
        found = f"holds {row.length} tokens, {stop - row.length} more came"
        raise ConfigError(f"cache: {found}, and no page is left (allocate a larger capacity)") from error


class RowsOfPass(NamedTuple):
    """The rows of a pass on the host: their numbers of new tokens, the number of new columns, and each row's place in
    each group. With `varlen` all new tokens lie in one row of `new` columns."""

    store: Store
    rows: Sequence[CachedRow]
    counts: Sequence[int]
    new: int
    groups: list[list[PlacedRow]]
    varlen: bool = False

    @property
    def shape(self) -> PagedShape:
        """The smallest PagedShape that holds these rows."""
        page = self.store.page
        pages = (max(-(-each.length // page) for each in group) for group in self.groups)
        return PagedShape(len(self.rows), self.new, tuple(pages), self.varlen)

    def pack(self, shape: PagedShape) -> array[int]:
        """Pack the integers of PassTensors for this shape. Padding rows read page 0 and write to the scratch slot."""
        store, spare = self.store, shape.rows - len(self.rows)
        numbers = array("q", [row.length for row in self.rows] + [0] * spare)
        numbers.extend([*self.counts, *[self.new] * spare])
        numbers.extend([row.slot for row in self.rows] + [store.slots] * spare)
        for number, (group, width) in enumerate(zip(self.groups, shape.pages, strict=True)):
            for each in group:
                numbers.extend(each.write)
            numbers.extend([store.scratch(number)] * (spare * self.new))
            numbers.extend([each.first for each in group] + [0] * spare)
            numbers.extend([each.length for each in group] + [self.new] * spare)
            for each in group:
                numbers.extend(each.pages)
                numbers.extend([0] * (width - len(each.pages)))
            numbers.extend([0] * (spare * width))
        return numbers


def place_rows(
    store: Store, rows: Sequence[CachedRow], counts: Sequence[int], new: int, varlen: bool = False
) -> RowsOfPass:
    """Make room for the next `counts` tokens of these rows, and return their places. Raises ConfigError if no page is
    left."""
    groups = [
        [
            place_row(row, number, group, count, count if varlen else new)
            for row, count in zip(rows, counts, strict=True)
        ]
        for number, group in enumerate(store.groups)
    ]
    return RowsOfPass(store, rows, counts, new, groups, varlen)
