"""Prefix caching: find the leading tokens of a new row that lie in the store already.

A row can start at position n if every kind of layer can be restored there: full attention needs all pages before n, a
window its last pages, a recurrent layer the state after exactly n tokens. Pages are named by the tokens in and before
them. Windows and states are copied at checkpoints: every `interval` tokens and at a prompt's last page. Where a cache
entry stands for several tokens, its page has the name of the last token page that it covers; rows start at the end of
such a page.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple
from weakref import WeakMethod

from zoo.cache.cached_row import CachedRow
from zoo.cache.pool_store import Store

INTERVAL = 256
"""Number of tokens between two checkpoints of windows and recurrent states."""


class Checkpoint(NamedTuple):
    """A copy of a row's cache after `tokens` tokens, without the pages of full attention: its windows' `pages` by
    group, and the `slot` of its recurrent states."""

    tokens: int
    pages: dict[int, list[int]]
    slot: int | None


class Prefixes:
    """Prefix cache: pages and checkpoints kept from earlier rows. Rows start at multiples of `step` tokens, a common
    multiple of `align` and of the page of each kind of layer. Not for prefix-LMs: their prompt tokens see one another
    in both directions, so the keys fit no other prompt."""

    def __init__(self, store: Store, interval: int = INTERVAL, align: int = 1) -> None:
        self.step = math.lcm(align, *(store.page * group.rate for group in store.groups), store.page)
        self.store, self.interval = store, max(self.step, interval // self.step * self.step)
        self.full = [g for g, group in enumerate(store.groups) if group.full]
        self.partial = [g for g, group in enumerate(store.groups) if group.window or group.chunk]
        self.recurrent = any(layer.states for layer in store.layers)
        self.kept: OrderedDict[bytes, Checkpoint] = OrderedDict()
        self.hits = self.asked = 0
        # weak: a cycle of store and prefix cache would keep the store's memory until it is collected
        evict = WeakMethod(self.evict)
        store.evict = lambda group=None: (found := evict()) is not None and found(group)

    @property
    def checkpoints(self) -> bool:
        """Whether any layer (a window, a recurrent one) can be restored only at checkpoints."""
        return bool(self.partial) or self.recurrent

    def name(self, names: list[bytes], ids: Sequence[int], salt: bytes = b"") -> None:
        """Append to `names` the names of further whole pages of `ids`. A name hashes all tokens up to the page's end,
        and the `salt`: rows of another salt (another adapter) have other keys for the same tokens."""
        page = self.store.page
        while (len(names) + 1) * page <= len(ids):
            start = len(names) * page
            digest = blake2b(names[-1] if names else salt, digest_size=16)
            digest.update(array("q", ids[start : start + page]).tobytes())
            names.append(digest.digest())

    def next_stop(self, row: CachedRow, end: int, last: int) -> int:
        """Return the token at which a pass that could reach `end` stops: `end`, or an earlier one for a checkpoint.
        `last` is the end of the last whole prompt page."""
        if not self.checkpoints:
            return end
        stops = [(row.length // self.interval + 1) * self.interval, *([last] if row.length < last else [])]
        return min(end, *stops)

    def restore(self, row: CachedRow, names: Sequence[bytes], most: int) -> None:
        """Start a new row with the longest cached prefix of its tokens, at most `most` tokens. Does nothing if there is
        none, or no room for the copies of its windows."""
        held = self._count_held(names, most)
        if not held or not self._has_room(self.kept[names[held - 1]].pages if self.checkpoints else {}):
            return
        for group in self.full:
            rate = self.store.groups[group].rate
            found = [self._find(group, name) for name in names[rate - 1 : held : rate]]
            for page in found:
                self.store.pools[group].share(page)  # type: ignore[arg-type]
            row.pages[group] = found  # type: ignore[assignment]
        row.length = held * self.store.page
        if self.checkpoints:
            self._start_from(row, self.kept[names[held - 1]])
            self.kept.move_to_end(names[held - 1])

    def _count_held(self, names: Sequence[bytes], most: int) -> int:
        """Count the leading pages, of at most `most` tokens, that a row can start with."""
        pages = min(len(names), most // self.store.page)
        held = next((n for n in range(pages) if any(self._lacks(group, names, n) for group in self.full)), pages)
        while held and (held * self.store.page % self.step or (self.checkpoints and names[held - 1] not in self.kept)):
            held -= 1
        return held

    def _lacks(self, group: int, names: Sequence[bytes], number: int) -> bool:
        """Whether a page of a group ends with token page `number` and is not cached."""
        return (number + 1) % self.store.groups[group].rate == 0 and self._find(group, names[number]) is None

    def awaits(self, names: Sequence[bytes], most: int, ahead: Sequence[bytes], length: int, last: int) -> bool:
        """Whether a waiting row should wait for a running one, because they have a common prefix that is not cached
        yet. The running row's page names are `ahead`, its computed tokens `length`, and the end of its last whole
        prompt page `last`."""
        page = self.store.page
        pages = min(len(names), len(ahead), most // page)
        common = bisect_left(range(pages), True, key=lambda n: names[n] != ahead[n]) * page
        if self.checkpoints and common != last:
            common = common // self.interval * self.interval
        common = common // self.step * self.step
        return length < common and self._count_held(names, most) * page < common

    def count(self, row: CachedRow, most: int) -> None:
        """Count a started row's reuse: add the `most` tokens that it could reuse to `asked`, and the reused ones to
        `hits`."""
        self.asked, self.hits = self.asked + most, self.hits + row.length

    def _find(self, group: int, name: bytes) -> int | None:
        return self.store.pools[group].find(name)

    def _start_from(self, row: CachedRow, checkpoint: Checkpoint) -> None:
        for group, pages in checkpoint.pages.items():
            row.dropped[group] = row.length // self.store.page - len(pages)
            row.pages[group] = self.store.pools[group].take(len(pages))
            self.store.copy_pages(group, pages, row.pages[group])
        if checkpoint.slot is not None:
            self.store.copy_states(checkpoint.slot, row.slot)

    def keep(self, row: CachedRow, names: Sequence[bytes], before: int, last: int) -> None:
        """Keep the whole pages that a pass added to a row of `before` tokens. Also keep a checkpoint if the row now
        ends at a multiple of `interval` tokens, or at `last`, the end of its last whole prompt page."""
        page, whole = self.store.page, row.length // self.step * self.step
        for number in range(before // page, min(whole // page, len(names))):
            for group in self.full:
                rate = self.store.groups[group].rate
                if (number + 1) % rate == 0:
                    self.store.pools[group].keep(row.pages[group][number // rate], names[number])
        due = row.length == last or row.length % self.interval == 0
        if self.checkpoints and row.length and row.length % self.step == 0 and due and row.length // page <= len(names):
            self._checkpoint(row, names[row.length // page - 1])

    def _checkpoint(self, row: CachedRow, name: bytes) -> None:
        if name in self.kept:
            self.kept.move_to_end(name)
            return
        windows = {group: self._window(row, group) for group in self.partial}
        while not self._has_room(windows) or (self.recurrent and not self.store.free_slots):
            if not self.evict():
                return
        slot = None
        if self.recurrent:
            slot = self.store.free_slots.pop()
            self.store.copy_states(row.slot, slot)
        pages = {}
        for group, held in windows.items():
            pages[group] = self.store.pools[group].take(len(held))
            self.store.copy_pages(group, held, pages[group])
        self.kept[name] = Checkpoint(row.length, pages, slot)

    def _window(self, row: CachedRow, group: int) -> list[int]:
        """Return the pages of a row's window that its next token sees."""
        page, dropped = self.store.page, row.dropped[group]
        first = self.store.groups[group].first_seen(row.length) // page
        return row.pages[group][first - dropped : row.length // page - dropped]

    def _has_room(self, windows: dict[int, list[int]]) -> bool:
        return all(self.store.pools[group].available >= len(pages) for group, pages in windows.items())

    def evict(self, group: int | None = None) -> bool:
        """Drop the least recently used checkpoint, to free its state slot or, if a `group` is given, its pages of that
        group. Returns False if there is none, or if checkpoints hold no pages of the group."""
        if not self.kept or (group is not None and group not in self.partial):
            return False
        _, oldest = self.kept.popitem(last=False)
        for group, pages in oldest.pages.items():
            self.store.pools[group].release(pages)
        if oldest.slot is not None:
            self.store.free_slots.append(oldest.slot)
        return True

    def forget(self) -> None:
        """Drop all cached pages and checkpoints."""
        while self.evict():
            pass
        for pool in self.store.pools:
            pool.forget()
