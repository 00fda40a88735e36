"""One sequence in a Store: the pages that it owns, and the slots of its tokens in them."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.cache.page_pool import OutOfPages
from zoo.cache.pool_store import Store
from zoo.kernels.view import Run


class CachedRow:
    """One sequence in a Store: `length` tokens, whose slots are in `pages` (one list per group, in order). The first
    `dropped[g]` pages of group g were freed, because no later token sees them. `source` is the number of encoder tokens
    that it reads, `slot` the slot of its recurrent states."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.length = self.source = 0
        self.pages: list[list[int]] = [[] for _ in store.groups]
        self.dropped = [0 for _ in store.groups]
        self.slot = store.free_slots.pop()
        for layer in store.layers:
            for state in layer.states.values():
                state[self.slot].zero_()

    def reserve(self, group: int, tokens: int) -> None:
        """Take pages for the first `tokens` tokens. Raises OutOfPages if too few are left; the row then owns no more
        than before."""
        slots = self.store.groups[group].count_slots(tokens)
        self._own(group, -(-slots // self.store.page) - self.dropped[group])

    def _own(self, group: int, pages: int) -> None:
        own = self.pages[group]
        wanted = pages - len(own)
        if wanted > 0:
            own += self.store.take(group, wanted, own[-1] if own else None)

    def own(self, group: int, pages: int) -> bool:
        """Take pages until the row owns `pages` of a group. If too few are left, take none and return False."""
        try:
            self._own(group, pages)
        except OutOfPages:
            return False
        return True

    def turn(self, group: int, token: int) -> int:
        """Reassign a window's pages, so that the first one is for the page of `token`. Content is not moved. Return the
        first token to write: `token` if pages were reassigned (they hold other tokens' keys), else the first uncached
        token."""
        gone = token // self.store.page - self.dropped[group]
        if gone <= 0:
            return max(token, self.length)
        self.dropped[group] += gone
        return token

    def slide(self, group: int, first: int, stop: int) -> None:
        """Make room for tokens up to `stop` in a window that no longer sees tokens before `first`.

        Visible pages are copied down over invisible ones, so that a window always lies in one run, read without a copy.
        Pages of 16 tokens move once in 16 steps. (In a paged store only their order changes.)
        """
        page, own = self.store.page, self.pages[group]
        gone = min(first // page - self.dropped[group], len(own))
        if gone <= 0 or -(-stop // page) - self.dropped[group] <= len(own):
            return
        if self.store.paged:  # read by page table: invisible pages take the next tokens, and nothing is copied
            own += own[:gone]
            del own[:gone]
        elif len(own) > gone:
            self.store.copy_pages(group, own[gone:], own)
        self.dropped[group] += gone

    def count_lacking(self, group: int, stop: int) -> int:
        """Count the missing pages of a window for its tokens up to `stop`, from the first token that the next token
        sees. Return 0 for groups without a window, whose pages are taken beforehand."""
        each, page = self.store.groups[group], self.store.page
        if each.window is None:
            return 0
        first = max(each.first_seen(max(0, self.length - self.store.undone)) // page, self.dropped[group])
        return max(0, -(-stop // page) - first - len(self.pages[group]))

    def trim(self, group: int) -> None:
        """Release a window's surplus pages: the first ones, which no later token sees."""
        each, own = self.store.groups[group], self.pages[group]
        if each.window is not None and (gone := len(own) - self.store.pages_of(each, 1 << 60)) > 0:
            self.store.pools[group].release(own[:gone])
            del own[:gone]
            self.dropped[group] += gone

    def runs(self, group: int, start: int, stop: int) -> list[Run]:
        """Return the slots of tokens `start` to `stop` as runs of consecutive slots. A slot that stands for several
        tokens counts as the last of them."""
        start, stop = map(self.store.groups[group].count_slots, (start, stop))
        page, first, own = self.store.page, self.dropped[group], self.pages[group]
        found: list[Run] = []
        token = start
        while token < stop:
            place = token // page
            last = place
            while (last + 1) * page < stop and own[last + 1 - first] == own[last - first] + 1:
                last += 1
            end, shift = min(stop, (last + 1) * page), (own[place - first] - place) * page
            found.append((token + shift, end + shift))
            token = end
        return found

    def share_source(self, other: CachedRow) -> None:
        """Read the same encoder's output as another row: release this row's pages of its source, and share `other`'s
        pages."""
        group = self.store.cross_group
        assert group is not None
        self.store.pools[group].release(self.pages[group])
        for page in other.pages[group]:
            self.store.pools[group].share(page)
        self.pages[group], self.source = list(other.pages[group]), other.source

    def release(self) -> None:
        """Give back all pages and the state slot that the row owns."""
        for pool, own in zip(self.store.pools, self.pages, strict=True):
            pool.release(own)
            own.clear()
        self.store.free_slots.append(self.slot)


def copy_row(source: CachedRow, target: CachedRow, start: int) -> None:
    """Copy the cache content of row `source` to row `target`. Tokens before `start` are equal already."""
    store = source.store
    for group, each in enumerate(store.groups):
        if each.cross:
            if target.source != source.source:
                target.share_source(source)
            continue
        begin = start
        if not each.full:
            target.dropped[group], begin = source.dropped[group], source.dropped[group] * store.page
        target.reserve(group, source.length)
        read, write = source.runs(group, begin, source.length), target.runs(group, begin, source.length)
        store.copy(group, list_slots(read), list_slots(write))
    store.copy_states(source.slot, target.slot)
    target.length = source.length


def list_slots(runs: Sequence[Run]) -> list[int]:
    """List the slots of runs one by one."""
    return [slot for run in runs for slot in range(*run)]
