"""Count the owners of a pool's pages: a page is free, owned by rows, or cached for reuse. Holds no tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from zoo.errors import ZooError


class OutOfPages(ZooError):
    """Raised if free and cached pages together do not suffice."""


class PagePool:
    """A pool of `count` pages. A page is free, cached (kept for reuse under a key, without an owner), or owned by rows.

    Rows that share a page only read it. Pages are given out in runs of consecutive numbers where possible: a CPU reads
    a run without copying it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.owners = [0] * count
        self._free = dict.fromkeys(range(count))  # ordered, and quick to search
        self._cached: OrderedDict[Hashable, int] = OrderedDict()  # least recently used first
        self._keys: dict[int, Hashable] = {}  # of owned and cached pages
        self._pages: dict[Hashable, int] = {}  # the reverse

    @property
    def available(self) -> int:
        """Number of pages that can be given out: free and cached ones."""
        return len(self._free) + len(self._cached)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Give out `count` pages: the ones after page `after` if they are free, else consecutive ones, else any.

        Cached pages are evicted when free ones do not suffice, least recently used first. Raises OutOfPages if both
        together do not suffice.
        """
        if count > self.available:
            raise OutOfPages(f"cache: {count} pages are wanted, {self.available} of {self.count} can be had")
        while len(self._free) < count:
            key, page = self._cached.popitem(last=False)
            del self._keys[page], self._pages[key]
            self._free[page] = None
        pages = self._find(count, after)
        for page in pages:
            del self._free[page]
            self.owners[page] = 1
        return pages

    def _find(self, count: int, after: int | None) -> list[int]:
        if after is not None:
            next_ones = range(after + 1, after + 1 + count)
            if all(page in self._free for page in next_ones):
                return list(next_ones)
        if count == 1:
            return [next(iter(self._free))]
        ordered = sorted(self._free)
        start = 0
        for place, page in enumerate(ordered):
            if page != ordered[start] + place - start:
                start = place
            if place - start + 1 == count:
                return ordered[start : place + 1]
        return ordered[:count]

    def share(self, page: int) -> None:
        """Make one more row an owner of a page that is owned or cached."""
        if not self.owners[page]:
            del self._cached[self._keys[page]]
        self.owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Give back pages that a row owns. When its last owner leaves, a page with a key stays cached, and a page
        without one becomes free."""
        for page in pages:
            self.owners[page] -= 1
            if self.owners[page]:
                continue
            if page in self._keys:
                self._cached[self._keys[page]] = page
            else:
                self._free[page] = None

    def keep(self, page: int, key: Hashable) -> None:
        """Give an owned page a key, by which its content can be reused. If another page has the key already, that page
        keeps it."""
        if key not in self._pages and page not in self._keys:
            self._pages[key], self._keys[page] = page, key

    def drop(self, page: int) -> None:
        """Forget what a cached page holds, and free it."""
        key = self._keys.pop(page)
        del self._pages[key], self._cached[key]
        self._free[page] = None

    def find(self, key: Hashable) -> int | None:
        """Return the page that has this key, or None."""
        return self._pages.get(key)

    def forget(self) -> None:
        """Free all cached pages, and forget all keys."""
        for page in self._cached.values():
            self._free[page] = None
        self._cached.clear()
        self._keys.clear()
        self._pages.clear()
