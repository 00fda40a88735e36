# N tokens of a pass, end to end; D model width
"""Read a context once for all of its continuations: each of them is a row of a cache whose first tokens are the
context's own slots, so that one pass writes the context and reads it many times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.cache.cache import Cache
from zoo.cache.rows import CachedRow
from zoo.cache.store import Store, list_groups
from zoo.lazy import torch
from zoo.text.reading import find_weight

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 32
"""Tokens that must be saved for a context to be read by itself: rows of a cache are attended one by one."""


class Branch(NamedTuple):
    """A context, and its continuations with their numbers."""

    context: Sequence[int]
    asked: list[tuple[int, Sequence[int]]]

    @property
    def size(self) -> int:
        """The tokens that are read: of a continuation all but the last."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.asked)

    @property
    def saved(self) -> int:
        """The tokens that are not read again, as against rows of their own; equal rows would be read once."""
        rows = {tuple(tokens[:-1]) for _, tokens in self.asked}
        return (len(rows) - 1) * len(self.context)


def shares_contexts(spec: Any, device: Any) -> bool:
    """Whether a decoder's rows can lie end to end in one pass and share slots: where every layer sees all that came
    before, and nothing depends on a row's length. A GPU reads rows of a cache by page, which such a pass does not."""
    blocks = spec.blocks.values()
    ragged = all(block.attention.varlen and block.attention.ragged and not block.state() for block in blocks)
    fixed = not any(each.reads_length for block in blocks if (each := block.attention.positioning))
    sees = all(block.attention.sight.window is None and block.attention.sight.chunk is None for block in blocks)
    causal = spec.cacheable_until is None and not spec.prefix_lm
    return ragged and fixed and sees and causal and device.type == "cpu"


def group_branches(branches: Sequence[Branch], tokens: int) -> Iterator[list[Branch]]:
    """Groups of branches that read at most so many tokens together; one at least."""
    held: list[Branch] = []
    for branch in branches:
        if held and sum(each.size for each in held) + branch.size > tokens:
            yield held
            held = []
        held.append(branch)
    if held:
        yield held


def make_store(model: Any, groups: Sequence[Sequence[Branch]]) -> Store:
    """Make a store with room for the largest of these groups. A page is one token, so that a row shares all of its
    context."""
    weight = find_weight(model)
    most = max(sum(branch.size for branch in group) for group in groups)
    rows = max(sum(1 + len(branch.asked) for branch in group) for group in groups)
    pages = [most] * len(list_groups(model.spec))
    return Store(model.spec, pages, rows, page=1, paged=False, dtype=weight.dtype, device=weight.device)


def read_branches(model: Any, store: Store, group: Sequence[Branch]) -> tuple[Tensor, list[tuple[int, list[int]]]]:
    """Read a group of branches in one pass: the last hidden states [N, D], and for each continuation, by its number,
    the places in it that its tokens are predicted at."""
    rows: list[CachedRow] = []
    counts: list[int] = []
    ids: list[int] = []
    found: list[tuple[int, list[int]]] = []
    for context, asked in group:
        root = CachedRow(store)
        reserve(root, len(context))
        rows.append(root)
        counts.append(len(context))
        ids += context
        end = len(ids) - 1
        for number, tokens in asked:
            found.append((number, [end, *range(len(ids), len(ids) + len(tokens) - 1)]))
            if len(tokens) > 1:
                rows.append(branch_off(root, len(context), len(tokens) - 1))
                counts.append(len(tokens) - 1)
                ids += tokens[:-1]
    batch = torch.tensor([ids], device=store.device)
    out = model(batch, cache=Cache(store, rows, varlen=True), counts=counts, logits_to_keep=0)
    for row in reversed(rows):
        row.release()
    return out.hidden[0], found


def reserve(row: CachedRow, tokens: int) -> None:
    """Own slots for so many tokens in every group."""
    for group in range(len(row.store.groups)):
        row.reserve(group, tokens)


def branch_off(root: CachedRow, length: int, more: int) -> CachedRow:
    """Make a row whose first `length` tokens are those of `root`, with room for `more`."""
    row = CachedRow(root.store)
    for group, own in enumerate(root.pages):
        for page in own:
            root.store.pools[group].share(page)
        row.pages[group] = list(own)
    row.length = length
    reserve(row, length + more)
    return row
