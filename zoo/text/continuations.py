# B rows, T tokens, N tokens of continuations or of a pass end to end, D model width
"""Score continuations: the log-likelihood of tokens after a context, for many continuations together.

On a CPU a context that several continuations share is computed once, if all layers see all earlier tokens and sharing
spares enough. Each continuation is then a row of the KV cache that begins with the context's own slots, so one pass
writes the context's keys and values and reads them many times. Otherwise each continuation has a separate row with its
context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.cache.cache import Cache
from zoo.cache.cached_row import CachedRow
from zoo.cache.pool_store import Store, list_groups
from zoo.errors import ConfigError, ZooError
from zoo.generation.prompt_towers import find_writer
from zoo.lazy import Tensor, torch
from zoo.run.likelihood import score_targets
from zoo.text.reader import find_weight, pad_rows
from zoo.text.score import CHUNK, MANY_TOGETHER, TOGETHER

if TYPE_CHECKING:
    from zoo.run.layer import Model

LEAST = 32
"""Minimum number of tokens that sharing a context must spare: attention runs over the rows of a cache one by one, which
costs time."""


class Continuation(NamedTuple):
    """A context, and at least one token after it. If the model cannot read both, the context loses its beginning."""

    context: Sequence[int]
    tokens: Sequence[int]


class Likelihood(NamedTuple):
    """The log-probability of a continuation in nats, and whether greedy decoding would give exactly its tokens."""

    logprob: float
    greedy: bool


@dataclass
class SharedRow:
    """A row of tokens to read once, and the continuations at its end: the index and the number of tokens of each. For a
    prefix LM the first `prefix` tokens, the context, see one another in both directions."""

    ids: Sequence[int]
    prefix: int | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)


def score_continuations(
    model: Any, asked: Sequence[Continuation], limit: int, advance: Callable[[int], object] | None = None
) -> list[Likelihood]:
    """Score continuations with a decoder that reads at most `limit` tokens. Equal rows are read once, and so is a
    context of several continuations if the model's layers can share it (`shares_contexts`).

    The longest are read first. `advance` is called with the number of continuations scored since the last call. Raises
    ConfigError for a continuation without a token or longer than `limit`, ZooError for a likelihood that is NaN.
    """
    check_lengths(asked, limit)
    device = find_weight(model).device
    together = TOGETHER.get(device.type, MANY_TOGETHER)
    branches = find_branches(asked, limit) if shares_contexts(model.spec, device) else []
    branched = {number for branch in branches for number, _ in branch.asked}
    alone = [number for number in range(len(asked)) if number not in branched]
    rows = make_rows(asked, limit, alone, prefixed=model.spec.prefix_lm)
    found: dict[int, Likelihood] = {}

    def take(scored: dict[int, Likelihood]) -> None:
        found.update(scored)
        if advance is not None:
            advance(len(scored))

    with torch.inference_mode():
        groups = list(group_branches(branches, together))
        store = make_store(model, groups) if groups else None
        for group in groups:
            assert store is not None
            hidden, places = read_branches(model, store, group)
            take(_score(model, hidden, places, asked))
        del store
        for batch in group_rows(rows, together):
            take(_score(model, *_read_rows(model, batch, device), asked))
    return [found[number] for number in range(len(asked))]


def check_lengths(asked: Sequence[Continuation], limit: int) -> None:
    """Raise ConfigError for a continuation that has no token, or more than `limit`."""
    for _, tokens in asked:
        if not 0 < len(tokens) <= limit:
            raise ConfigError(f"tasks: a continuation has {len(tokens)} tokens, the model reads 1 to {limit}")


def find_branches(asked: Sequence[Continuation], limit: int) -> list[Branch]:
    """Find the contexts worth sharing, the longest first. A context that must lose its beginning is not shared, because
    the cut depends on the continuation."""
    branches: dict[tuple[int, ...], Branch] = {}
    for number, (context, tokens) in enumerate(asked):
        if len(context) + len(tokens) - 1 <= limit:
            branches.setdefault(tuple(context), Branch(context, [])).asked.append((number, tokens))
    paying = [branch for branch in branches.values() if branch.saved >= LEAST]
    return sorted(paying, key=lambda branch: -branch.size)


def make_rows(
    asked: Sequence[Continuation], limit: int, numbers: Sequence[int], *, prefixed: bool = False
) -> list[SharedRow]:
    """Make the rows to read for the continuations at the indices `numbers`, the longest row first. Equal rows are
    merged."""
    rows: dict[tuple[Any, ...], SharedRow] = {}
    for number in numbers:
        context, tokens = asked[number]
        ids = tuple([*context, *tokens][-(limit + 1) : -1])  # the last token is a target only
        prefix = len(ids) + 1 - len(tokens) if prefixed else None
        rows.setdefault((ids, prefix), SharedRow(ids, prefix)).asked.append((number, len(tokens)))
    return sorted(rows.values(), key=lambda row: -len(row.ids))


def group_rows(rows: Sequence[SharedRow], tokens: int) -> Iterator[Sequence[SharedRow]]:
    """Yield groups of rows with about `tokens` tokens each, padding included."""
    start = 0
    while start < len(rows):
        count = max(tokens // max(len(rows[start].ids), 1), 1)
        yield rows[start : start + count]
        start += count


def _read_rows(
    model: Model, rows: Sequence[SharedRow], device: torch.device
) -> tuple[Tensor, list[tuple[int, list[int]]]]:
    """Run the model on rows. Returns hidden states [N, D] and, for each continuation, its index and the indices of the
    states that predict its tokens."""
    ids, there = pad_rows([row.ids for row in rows], 0, device)
    padded = any(len(row.ids) < ids.shape[1] for row in rows)
    prefix = None if rows[0].prefix is None else torch.tensor([row.prefix for row in rows], device=device)
    out = model(ids, there if padded else None, prefix=prefix, logits_to_keep=0)
    hidden = out.hidden.flatten(0, 1)  # N D
    places = []
    for line, row in enumerate(rows):
        last = line * ids.shape[1] + len(row.ids)
        places += [(number, list(range(last - size, last))) for number, size in row.asked]
    return hidden, places


def _score(
    model: Model, hidden: Tensor, places: Sequence[tuple[int, list[int]]], asked: Sequence[Continuation]
) -> dict[int, Likelihood]:
    """Score continuations from hidden states [N, D], given the indices of the states that predict their tokens. Raises
    ZooError for a likelihood that is NaN."""
    at = torch.tensor([place for _, own in places for place in own], device=hidden.device)
    targets = torch.tensor([token for number, _ in places for token in asked[number].tokens], device=hidden.device)
    logprobs, likeliest = (each.tolist() for each in score_targets(model, hidden[at], targets, CHUNK))
    found, start = {}, 0
    for number, own in places:
        stop = start + len(own)
        total = math.fsum(logprobs[start:stop])
        if math.isnan(total):  # not -inf, which is the score of a token that the model excludes
            raise ZooError(f"eval: a log-likelihood is {total} (sound weights, or dtype=fp32)")
        found[number] = Likelihood(total, all(likeliest[start:stop]))
        start = stop
    return found


# ---------------------------------------------------------------- contexts that are shared


class Branch(NamedTuple):
    """A shared context, and its continuations, each with its index."""

    context: Sequence[int]
    asked: list[tuple[int, Sequence[int]]]

    @property
    def size(self) -> int:
        """The number of tokens to read: the whole context, and all but the last token of each continuation."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.asked)

    @property
    def saved(self) -> int:
        """The number of tokens saved by sharing, compared with one row for each different continuation."""
        rows = {tuple(tokens[:-1]) for _, tokens in self.asked}
        return (len(rows) - 1) * len(self.context)


def shares_contexts(spec: Any, device: torch.device) -> bool:
    """Whether a decoder's rows can lie end to end in one pass and share slots of the KV cache: every layer sees all
    earlier tokens, and nothing depends on a row's length. CPU only: on a GPU rows of a cache are read by page, which
    excludes sharing slots."""
    blocks = spec.blocks.values()
    passes = [block.attention.passes for block in blocks]
    ragged = all(each.varlen == math.inf and each.ragged for each in passes) and not any(
        block.state() for block in blocks
    )
    fixed = not any(each.reads_length for block in blocks if (each := block.attention.positioning))
    sees = all(block.attention.sight.window is None and block.attention.sight.chunk is None for block in blocks)
    causal = spec.cacheable_until is None and not spec.prefix_lm
    return ragged and fixed and sees and causal and device.type == "cpu"


def group_branches(branches: Sequence[Branch], tokens: int) -> Iterator[list[Branch]]:
    """Yield groups of branches. A group has at most `tokens` tokens to read, or is a single longer branch."""
    held: list[Branch] = []
    for branch in branches:
        if held and sum(each.size for each in held) + branch.size > tokens:
            yield held
            held = []
        held.append(branch)
    if held:
        yield held


def make_store(model: Model, groups: Sequence[Sequence[Branch]]) -> Store:
    """Make a KV cache for the largest of these groups. Pages hold one token, so that all of a context is shared."""
    weight = find_weight(model)
    most = max(sum(branch.size for branch in group) for group in groups)
    rows = max(sum(1 + len(branch.asked) for branch in group) for group in groups)
    tower = find_writer(model.spec)
    pages = [most] * len(list_groups(tower))
    return Store(tower, pages, rows, page=1, paged=False, dtype=weight.dtype, device=weight.device)


def read_branches(model: Model, store: Store, group: Sequence[Branch]) -> tuple[Tensor, list[tuple[int, list[int]]]]:
    """Run the model on a group of branches in one pass. Returns the last hidden states [N, D] and, for each
    continuation, its index and the indices of the states that predict its tokens."""
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
    """Reserve slots for `tokens` tokens in every group of layers."""
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
