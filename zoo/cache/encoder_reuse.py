"""Reuse an encoder's outputs that lie in the store already, as keys and values of cross-attention.

Every token of an encoder's output depends on the whole source. So a source's pages are named by all of its tokens, and
a source is kept whole or not at all.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from zoo.cache.cached_row import CachedRow
from zoo.cache.pool_store import Store


class Sources:
    """The encoder sources in a Store, cached as cross-attention's keys and values. Rows read them; unused ones stay for
    later rows until their room is needed. Of the `asked` source tokens of started rows, `hits` were cached."""

    def __init__(self, store: Store) -> None:
        assert store.cross_group is not None
        self.group, self.page = store.cross_group, store.page
        self.pool = store.pools[self.group]
        self.hits = self.asked = 0

    def name(self, source: Sequence[int], salt: bytes = b"") -> list[bytes]:
        """Return the names of a source's pages: hashes of all its tokens and of `salt`, which differs between
        adapters."""
        whole = blake2b(salt + array("q", source).tobytes(), digest_size=16).digest()
        return [whole + number.to_bytes(4, "little") for number in range(-(-len(source) // self.page))]

    def restore(self, row: CachedRow, names: Sequence[bytes], tokens: int) -> None:
        """Give a new row its source of `tokens` tokens if it is cached. Drop a source that is cached only in part."""
        found = [page for name in names if (page := self.pool.find(name)) is not None]
        if len(found) < len(names):
            for page in found:
                self.pool.drop(page)
            return
        for page in found:
            self.pool.share(page)
        row.pages[self.group], row.source = found, tokens

    def count(self, row: CachedRow, tokens: int) -> None:
        """Add to `asked` the `tokens` source tokens of a row that has started, and to `hits` those that were cached."""
        self.asked, self.hits = self.asked + tokens, self.hits + row.source

    def keep(self, row: CachedRow, names: Sequence[bytes]) -> None:
        """Let later rows reuse the source that a row has read in its first pass."""
        for page, name in zip(row.pages[self.group], names, strict=True):
            self.pool.keep(page, name)

    def forget(self) -> None:
        """Drop all cached sources."""
        self.pool.forget()
