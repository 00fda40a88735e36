# B batch, T new tokens, E entries, m tokens of an entry, s series, C channels, W window, S keys
"""Compressed entries in one forward pass: the windows of tokens that make them, and attention to the entries.

Every m tokens of a text, counted from its start, make one entry. A pass makes the same number of entries in every row,
complete or not, and caches the complete ones. The sums so far of an incomplete entry (`RunningSums`) and the last W − 1
tokens, for the attention window W, are states of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError
from zoo.kernels import attend
from zoo.kernels.choosing import find_pools
from zoo.kernels.mask import Mask
from zoo.kernels.running_sums import NOTHING, RunningSums, count_windows, read_sums, sum_windows
from zoo.kernels.view import KeySegment, KeyView, PagedView, count_slots
from zoo.lazy import F, Tensor, torch
from zoo.model.attention.recurrent import join_earlier

if TYPE_CHECKING:
    from zoo.kernels.view.base import Run
    from zoo.kernels.view.slots import SlotMapping
    from zoo.model.attention.base import SoftmaxAttention
    from zoo.model.context import ForwardContext
    from zoo.model.step import Step, Weights


ENTRIES, ENTRY_TABLES = "entries", "entry_tables"
"""Keys of `Step.extra`: the Entries of a kind of layer, and the rotary tables of these entries."""


@dataclass
class Entries:
    """The windows of m tokens, E in each row, that the new tokens of a pass belong to. Layers of one kind share this
    object.

    `places` [B|1, T] are the tokens' places in their windows. `members` [B|1, E, m] are the indices of each window's
    tokens, and `hidden` [B|1, E, m] is True for absent tokens. If `members` is None, windows are consecutive, and
    `front` tokens of the first one came in an earlier pass. `begun` [B|1, 1, 1] is True if a row's first window began
    in an earlier pass. `follows` [B|1, E, 1] is True if a window is of the same text as the window before it (None: all
    but the first are). `last` [B] is the index of the last window with tokens of the row (None: E − 1).

    `near` [B|1, T, S] is True for those of the last S single tokens that a query sees (None: all); the first `held` of
    them come from the state. `joined` is the mask over single tokens and entries; None if layers have an indexer or if
    rows are ragged. `counts` [B] is the number of tokens that each row adds (None: T).
    """

    rate: int
    count: int
    positions: Tensor  # B|1 E: position of each window's first token
    places: Tensor
    near: Tensor | None
    held: int = 0
    front: int = 0
    members: Tensor | None = None
    hidden: Tensor | None = None
    begun: Tensor | None = None
    follows: Tensor | None = None
    last: Tensor | None = None
    counts: Tensor | None = None
    joined: Mask | None = None
    kernels: list[Any] | None = None  # the kernel that the first of these layers chose

    def list_shared(self) -> tuple[Any, ...]:
        """List the tensors that all layers of a kind read, so that pricing counts them once."""
        drawn = () if self.joined is None else (self.joined._dense, self.joined._additive)
        return (self.places, self.near, *drawn)

    def _group(self, x: Tensor, fill: float) -> Tensor:
        """Group tokens x [B, T, C] by window [B, E, m, C]; absent tokens are `fill`."""
        if self.members is not None:
            index = self.members.expand(x.shape[0], -1, -1).flatten(1)[..., None].expand(-1, -1, x.shape[-1])
            taken = x.gather(1, index).unflatten(1, (-1, self.rate))
            return taken if self.hidden is None else taken.masked_fill(self.hidden[..., None], fill)
        if x.shape[1] == 1:
            return x[:, None]
        whole = self.count * self.rate
        x = x[:, : whole - self.front]
        back = whole - self.front - x.shape[1]
        x = F.pad(x, (0, 0, self.front, back), value=fill) if self.front or back else x
        return x.unflatten(1, (self.count, self.rate))

    def _go_on(self, sums: RunningSums, earlier: RunningSums) -> RunningSums:
        """Merge the first window's sums from an `earlier` pass into its sums of this pass."""
        assert self.begun is not None
        return sums.merge(earlier.keep(self.begun).pad(0, self.count - 1))

    def _follow(self, own: RunningSums, later: RunningSums, first: RunningSums | None) -> RunningSums:
        """Add to each window's `own` sums the `later` sums of the window before it; the first window gets `first`."""
        if first is None:
            before = later.windows(0, self.count - 1).pad(1, 0)
        elif self.count == 1:
            before = first
        else:
            before = RunningSums(*(torch.cat((a, b[:, :-1]), 1) for a, b in zip(first, later, strict=True)))
        return own.merge(before if self.follows is None else before.keep(self.follows))

    def _take_last(self, sums: RunningSums) -> RunningSums:
        """Take the sums of the last window in which each row has tokens."""
        return sums.windows(self.count - 1, self.count) if self.last is None else sums.pick(self.last)


def _attend_seen(
    segment: KeySegment, q: Tensor, near: Tensor, entries: Tensor, seen: Tensor | None, most: int | None, how: Any
) -> Tensor:
    """Attend to the single tokens `near` that are `seen` [B|1, T, S] (None: all), and to the entries that the segment's
    mask shows. `most` is the maximum number of entries that an indexer chooses: for a single query no more are
    gathered."""
    keys = segment.mask.dense(q.device)[:, 0]  # B|1 T E
    if most is not None and q.shape[1] == 1 and most < keys.shape[2]:
        places = keys.long().topk(most, -1)[1]  # B 1 most: visible entries come first
        keys = keys.gather(-1, places)
        entries = entries.gather(1, places[:, 0, :, None].expand(-1, -1, entries.shape[-1]))
    shape = (max(keys.shape[0], 1 if seen is None else seen.shape[0]), q.shape[1], near.shape[1])
    seen = torch.ones(shape, dtype=torch.bool, device=q.device) if seen is None else seen[..., : shape[2]].expand(shape)
    mask = Mask.of_pairs(torch.cat((seen, keys.expand(shape[0], -1, -1)), -1))
    return _attend(q, near, entries, mask, how)


def pool_entries(step: Step, name: str, values: Tensor, gates: Tensor, places: Tensor, overlap: bool) -> Tensor:
    """Make entries [B, E, C], each the mean of a window's values [B, T, s·C], weighted in each channel by a softmax
    over gates + `places` [m, s·C]. With `overlap`, s is 2: the first half of a token's channels belongs to the next
    window, the second half to its own. The sums so far of incomplete windows are the state `name` [B, s, 3, C]."""
    made: Entries = step.extra[ENTRIES]
    width = values.shape[-1] // (2 if overlap else 1)
    if not made.count:
        return values[:, :0, :width]
    gates = gates.float() + F.embedding(made.places, places.float())
    if made.counts is not None and made.members is None:
        late = torch.arange(gates.shape[1], device=gates.device)[None] >= made.counts[:, None]
        gates = gates.masked_fill(late[..., None], NOTHING)
    sums = sum_windows(made._group(gates, NOTHING), made._group(values.float(), 0.0))
    state = step.state(name)
    if not overlap:
        own = sums if state is None else made._go_on(sums, read_sums(state[:, 0]))
        kept = [own]
    else:
        later, own, first = sums.channels(0, width), sums.channels(width, 2 * width), None
        if state is not None:
            assert made.begun is not None
            this, after = read_sums(state[:, 0]), read_sums(state[:, 1])
            first, later = this.choose(made.begun, after), made._go_on(later, after)
        own = made._follow(own, later, first)
        kept = [own, later]
    if step.cache is not None:
        step.hold(**{name: torch.stack([made._take_last(each).state for each in kept], 1)})
    return own.mean.to(values.dtype)


def slide_window(step: Step, name: str, x: Tensor, window: int) -> Tensor:
    """Put the earlier tokens of the window in front of x [B, T, C]: [B, S, C]. The state `name` has the last W − 1
    tokens, and is updated. Without a cache, return x."""
    before = window - 1
    if step.cache is None or not before:
        return x
    return join_earlier(x, step, name, before).joined[:, before - step.extra[ENTRIES].held :]


def attend_entries(
    step: Step, q: Tensor, near: Tensor, entries: Tensor, scale: float, most: int | None, **scores: Any
) -> Tensor:
    """Attend in one softmax to the window's tokens `near` [B, S, C] and to entries [B, E, C]: to all entries or, after
    an indexer, to the chosen ones (`most` or fewer). Each token and each entry is the key and the value of all heads: q
    [B, T, H, C] → [B, T, H, C]. For ragged rows, and rows read by page table, entries are a pool [N, C]."""
    made, keys = step.extra[ENTRIES], step.keys
    how = {"kernel": step.kernel, "chosen": made.kernels, "scale": scale, **scores}
    how |= {"again": step.again, "dropout": step.drop_attention(q)}
    if made.joined is not None:
        return _attend(q, near, keys.read(entries)[0], made.joined, how)
    keys = keys if step.choice is None else keys.narrow(step.choice)
    queries, tokens = keys.split(q), q.shape[1]
    seen = [None] * len(queries) if made.near is None else keys.split(made.near)
    each = zip(keys.segments, queries, keys.split(near, near.shape[1] - tokens), keys.read(entries), seen, strict=True)
    return keys.join([_attend_seen(*parts, most, how) for parts in each], tokens)


def _attend(q: Tensor, near: Tensor, entries: Tensor, mask: Mask, how: dict[str, Any]) -> Tensor:
    keys = torch.cat((near, entries.to(near.dtype)), 1)[:, :, None]  # B S+E 1 C
    return attend(q, keys, keys, mask, **how)


# ---------------------------------------------------------------- once a pass


def share_entries(
    context: ForwardContext,
    step: Step,
    attention: SoftmaxAttention,
    own: Weights | None,
    slots: SlotMapping | None,
    dtype: torch.dtype,
) -> None:
    """Add to the Step the values that all layers with compressed keys share: the windows that the new tokens fill,
    rotary tables for the windows' entries, and masks over entries, which an indexer narrows further. Raises ConfigError
    for a bidirectional prefix."""
    if context.prefix is not None:
        found = "attention: compressed entries are of tokens that came before, found a prefix that is seen whole"
        raise ConfigError(f"{found} (use gqa there)")
    if context.cache is None:
        entries, seen = _read_texts(context, attention)
    elif context.past is not None:
        entries, seen = _continue_alike(context, attention)
    else:
        entries, seen = _continue_rows(context, attention), None
    joined = None
    if slots is not None and slots.table is not None:
        ends = (torch.arange(slots.n_keys, device=context.device) + 1) * attention.sight.rate
        seen = ends <= context.index[..., None] + 1  # B T S
    if slots is not None and slots.ragged and slots.table is None:
        rows = [_see_row(context, attention.sight.rate, *each) for each in context.list_rows(slots)]
        step.keys = context.pool(rows, slots)
    elif seen is None:  # a single token, which sees all entries
        assert slots is not None
        held = count_slots(slots.rows[0])
        step.keys = KeyView(Mask(1, held), slots=slots)
        joined = Mask(1, entries.held + 1 + held)
    else:
        assert entries.near is not None
        view = KeyView if slots is None or slots.table is None else PagedView
        step.keys, rows = view(Mask.of_pairs(seen), slots=slots), max(entries.near.shape[0], seen.shape[0])
        joined = Mask.of_pairs(torch.cat((entries.near.expand(rows, -1, -1), seen.expand(rows, -1, -1)), -1))
    if joined is not None and attention.chooser is None:  # with an indexer each layer has its own mask
        entries.joined = joined
        context.draw(step, attention, dtype, joined)
    entries.kernels = None if context.cache is None else []
    step.extra[ENTRIES] = entries
    step.extra[ENTRY_TABLES] = attention.positioning.tables(entries.positions, attention.rotary_width, dtype, None, own)


def _read_texts(context: ForwardContext, attention: SoftmaxAttention) -> tuple[Entries, Tensor]:
    """Find the windows of whole texts (no cache), and the entries that each query sees [B|1, T, E]. The incomplete
    window at the end of a text makes no entry."""
    rate, new, device = attention.sight.rate, context.new, context.device
    apart = None if context.documents is None else (context.documents, context.documents)
    hides: Any = {"padding": context.padding, "documents": apart}
    near = Mask(new, new, window=attention.sight.near, **hides).dense(device)[:, 0]
    whole = Mask(new, new, **hides)
    last, real, _ = find_pools(whole, new, rate, device)  # B|1 E each
    query = torch.arange(new, device=device)[:, None]
    entries = Entries(rate, new // rate, context.every[:, : new // rate], context.every % rate, near)
    if context.padding is None and context.documents is None:
        entries.positions = last - (rate - 1)
        return entries, last[:, None] <= query
    rows = max(last.shape[0], context.every.shape[0])
    last, real = last.expand(rows, -1), real.expand(rows, -1)
    entries.positions = (context.every.expand(rows, -1).gather(1, last) - (rate - 1)).clamp(min=0)
    entries.members = (last[..., None] + torch.arange(1 - rate, 1, device=device)).clamp(min=0)
    entries.follows = (entries.positions > 0)[..., None]  # a text's first window is at position 0
    row = torch.arange(rows, device=device)[:, None, None]
    return entries, whole.sees(row, query, last[:, None]) & real[:, None]


def _continue_alike(context: ForwardContext, attention: SoftmaxAttention) -> tuple[Entries, Tensor | None]:
    """Find the windows of the new tokens, for rows with equal numbers of cached tokens. Also find the entries that each
    query sees [1, T, E] (None for a single token, which sees all)."""
    rate, new, device, past = attention.sight.rate, context.new, context.device, context.past
    assert past is not None
    count, held = count_windows(rate, new, past), min(past, attention.sight.near - 1)
    positions = (torch.arange(count, device=device) + past // rate)[None] * rate
    near = None if new == 1 else Mask(new, held + new, window=attention.sight.near).dense(device)[:, 0]
    begun = torch.full((1, 1, 1), past % rate > 0, device=device)
    entries = Entries(rate, count, positions, context.index[past:][None] % rate, near, held, past % rate, begun=begun)
    if context.real is not None:
        entries.counts = context.real.sum(1)
        entries.last = (past % rate + entries.counts - 1) // rate
    if new == 1:
        return entries, None
    ends = (torch.arange((past + new) // rate, device=device) + 1) * rate
    return entries, (ends <= context.index[past:, None] + 1)[None]


def _continue_rows(context: ForwardContext, attention: SoftmaxAttention) -> Entries:
    """Find the windows of the new tokens, for rows with different numbers of cached tokens."""
    rate, new, device, before = attention.sight.rate, context.new, context.device, attention.sight.near - 1
    assert context.cache is not None
    starts = context.cache.starts  # B
    count, columns = count_windows(rate, new, None), torch.arange(new, device=device)
    positions = (starts[:, None] // rate + torch.arange(count, device=device)) * rate
    query = starts[:, None, None] + columns[:, None]  # B T 1
    key = starts[:, None, None] + torch.arange(before + new, device=device) - before  # B 1 S
    near = (key >= 0) & (key <= query) & (query - key <= before)
    shift = starts % rate
    entries = Entries(rate, count, positions, context.index % rate, near, before, begun=(shift > 0)[:, None, None])
    counts = torch.full_like(starts, new) if context.real is None else context.real.sum(1)
    entries.counts = None if context.real is None else counts
    if new > 1:
        token = torch.arange(count * rate, device=device).view(count, rate) - shift[:, None, None]  # B E m
        entries.hidden = (token < 0) | (token >= counts[:, None, None])
        entries.members = token.clamp(0, new - 1)
        entries.last = (shift + counts - 1) // rate
    return entries


def _see_row(context: ForwardContext, rate: int, count: int, stop: int, runs: list[Run]) -> KeySegment:
    """Make the key segment of one row: its entries, and a mask of the entries that its queries see. The queries are the
    `count` tokens that end before index `stop`."""
    held = count_slots(runs)
    if count == 1:
        return KeySegment(Mask(1, held), runs)
    ends = (torch.arange(held, device=context.device) + 1) * rate
    query = torch.arange(stop - count, stop, device=context.device)[:, None]
    return KeySegment(Mask.of_pairs((ends <= query + 1)[None]), runs)
