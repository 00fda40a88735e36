"""Count the (query, key) pairs that a mask allows, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zoo.model.attention.base import BlockPattern


class Look(NamedTuple):
    """Which keys the queries of an attention see, for counting pairs."""

    causal: bool
    cross: bool  # keys are an encoder's output
    window: int | None = None
    chunk: int | None = None
    top_k: int | None = None  # number of visible keys that an indexer selects
    blocks: BlockPattern | None = None
    granule: int = 1  # keys that the indexer selects together
    tail: bool = False  # a query also sees the keys of its own unfinished granule
    rate: int = 1  # tokens that one key stands for (a pool); a query sees the pools that have ended
    ahead: int | None = None  # reach forward of a bidirectional query, where it differs from `window`
    near: int = 0  # window of single tokens that a query sees in addition to pools

    def pairs(self, new: int, held: int = 0, memory: int = 0) -> int:
        """Count the pairs of `new` tokens after `held` cached ones. `memory` is the number of the encoder's tokens."""
        if self.cross:
            return new * memory
        if self.near:
            return visible_pairs(new, held, self.near) + self._replace(near=0).pairs(new, held)
        if self.rate > 1 and self.causal:
            return pooled_pairs(held + new, self.rate, self.top_k) - pooled_pairs(held, self.rate, self.top_k)
        if self.top_k is not None:
            if not self.causal:
                return new * self._choose(new)
            return self._chosen(held + new) - self._chosen(held)
        if self.rate > 1:
            return new * (new // self.rate)
        if self.blocks is not None:
            return block_pairs(new, self.blocks)
        if not self.causal:
            if self.chunk is not None:
                return new // self.chunk * self.chunk**2 + (new % self.chunk) ** 2
            return both_ways_pairs(new, self.window, self.ahead)
        if self.chunk is not None:
            return chunked_pairs(held + new, self.chunk) - chunked_pairs(held, self.chunk)
        return visible_pairs(new, held, self.window)

    def square(self, tokens: int) -> int:
        """Count all pairs of `tokens` queries and the keys made of these tokens, hidden pairs included."""
        pooled = tokens * (tokens // self.rate)
        return pooled + tokens * tokens if self.near else pooled

    def shown_by(self, prefix: int) -> int:
        """Count the pairs that a prefix LM adds to causal attention. The first `prefix` tokens all see one another; in
        chunked attention, they do so within a chunk."""
        if self.cross or not self.causal:
            return 0
        if self.chunk is not None:  # prefix tokens see one another within their chunk only
            return chunked_pairs(prefix, self.chunk) - prefix
        if self.top_k is not None:
            return prefix * self._choose(prefix) - self._chosen(prefix)
        if self.rate > 1:
            return prefix * (prefix // self.rate) - pooled_pairs(prefix, self.rate)
        return prefix * prefix - visible_pairs(prefix, 0, self.window)

    def _choose(self, seen: int) -> int:
        """Count the keys that are selected for a query which sees `seen` keys."""
        assert self.top_k is not None
        if not self.tail:
            return min(seen, self.top_k)
        return seen if seen < self.top_k + self.granule else self.top_k + seen % self.granule

    def _chosen(self, tokens: int) -> int:
        """Count the pairs of a query and a key selected for it, in a causal row of `tokens` tokens."""
        assert self.top_k is not None
        return (tailed_pairs if self.tail else chosen_pairs)(tokens, self.top_k, self.granule)


def visible_pairs(new: int, held: int, window: int | None) -> int:
    """Count the pairs of `new` causal queries after `held` tokens; each sees `window` keys at most, its own
    included."""
    if window is None or window >= held + new:
        return new * held + new * (new + 1) // 2
    short = min(new, max(0, window - held))  # queries that do not fill the window yet
    return short * held + short * (short + 1) // 2 + (new - short) * window


def chosen_pairs(tokens: int, top_k: int, granule: int) -> int:
    """Count the causal pairs of `tokens` tokens with `top_k` keys each at most, selected in blocks of `granule`. The
    newest block is one of them even if it is unfinished: with 2 blocks of 4 the tenth token sees 4 + 2 keys."""
    if tokens <= top_k:
        return tokens * (tokens + 1) // 2
    later = tokens - top_k
    whole, rest = divmod(later, granule)
    newest = whole * (granule * (granule + 1) // 2) + rest * (rest + 1) // 2
    return top_k * (top_k + 1) // 2 + later * (top_k - granule) + newest


def tailed_pairs(tokens: int, top_k: int, granule: int) -> int:
    """Count the causal pairs of `tokens` tokens with `top_k` keys each at most, selected in whole pools of `granule`,
    and with the keys of their unfinished pool. With 2 pools of 4 the 13th token sees 8 + 1 keys, the 12th 8."""
    first = min(tokens, top_k + granule - 1)  # these tokens see every key before them
    whole, rest = divmod(tokens - first, granule)
    later = (tokens - first) * top_k + whole * (granule * (granule - 1) // 2) + rest * (rest - 1) // 2
    return first * (first + 1) // 2 + later


def pooled_pairs(tokens: int, pool: int, most: int | None = None) -> int:
    """Count the causal pairs of `tokens` tokens with pools of `pool` tokens. A token sees the pools that have ended
    with it or before: the first `pool` − 1 tokens see none, each of the next `pool` tokens one, and so on, up to `most`
    pools (None: all)."""
    few = tokens if most is None else min(tokens, most * pool)
    whole, rest = divmod(few, pool)
    return pool * (whole * (whole - 1) // 2) + whole * (rest + 1) + (tokens - few) * (most or 0)


def both_ways_pairs(tokens: int, reach: int | None, ahead: int | None = None) -> int:
    """Count the pairs of `tokens` bidirectional queries. Each sees itself, `reach` tokens before (None: all tokens) and
    `ahead` tokens after (None: `reach`)."""
    if reach is None:
        return tokens * tokens
    sides = (min(each, tokens - 1) for each in (reach, reach if ahead is None else ahead))
    return tokens + sum(each * tokens - each * (each + 1) // 2 for each in sides)


def chunked_pairs(tokens: int, chunk: int) -> int:
    """Count the causal pairs of `tokens` tokens in chunks of `chunk`; a query sees only its own chunk."""
    whole, rest = divmod(tokens, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


def block_pairs(tokens: int, blocks: BlockPattern) -> int:
    """Count the pairs of block-sparse attention. Tokens of the first and the last block see all tokens. The others see
    these two blocks, their own block and its two neighbours; blocks that coincide count once. Up to `whole_until`
    tokens, every token sees all."""
    size, whole_until = blocks
    if tokens <= whole_until:
        return tokens * tokens
    ends = size + (tokens - 1) % size + 1
    inner = tokens - ends
    return ends * (tokens + inner) + size * (3 * inner - 2 * size)
