"""Check the invariants of an engine between two steps: a Snapshot of its pools, rows and queues, and the rules it
breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.cache.store import Group
from zoo.errors import ZooError

Number = tuple[int, int]
"""A sequence: its request's number and its own among the request's samples."""


@dataclass(frozen=True, kw_only=True)
class PoolSnapshot:
    """A PagePool: `owners` a page; `free` and `cached` pages; the name of each named page."""

    owners: tuple[int, ...]
    free: tuple[int, ...]
    cached: tuple[int, ...]
    names: dict[int, Any]


@dataclass(frozen=True, kw_only=True)
class RowSnapshot:
    """A running sequence and its CachedRow. `known` are its tokens, `most` the most that its row may hold of them,
    `promised` the tokens of an encoder's output that it reads; `names` those of its whole pages, or of its source's."""

    number: Number
    length: int
    known: int
    most: int
    source: int
    promised: int
    slot: int
    pages: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]
    names: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class KeptSnapshot:
    """A checkpoint: its tokens, by group its pages, and its slot."""

    tokens: int
    pages: dict[int, tuple[int, ...]]
    slot: int | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An engine between two steps. `waiting`, `running` and `live` name the sequences in each queue, in order. A row of
    a window has room for `new` tokens a pass. With `shares`, rows of one source share its pages."""

    page: int
    new: int
    shares: bool
    groups: tuple[Group, ...]
    pools: tuple[PoolSnapshot, ...]
    slots: int
    free_slots: tuple[int, ...]
    rows: tuple[RowSnapshot, ...]
    kept: tuple[KeptSnapshot, ...]
    waiting: tuple[Number, ...]
    running: tuple[Number, ...]
    live: tuple[Number, ...]


# ---------------------------------------------------------------- taking one


def snapshot(engine: Any) -> Snapshot:
    """Copy what the rules are about out of an Engine."""
    store, scheduler, prefixes = engine.store, engine.scheduler, engine.prefixes
    live = (each for request in engine.live.values() for each in request if each.finished is None)
    return Snapshot(
        page=store.page,
        new=store.new,
        shares=engine.sources is not None,
        groups=tuple(store.groups),
        pools=tuple(_pool(pool) for pool in store.pools),
        slots=store.slots,
        free_slots=tuple(store.free_slots),
        rows=tuple(_row(each, scheduler.limit) for each in _with_rows(scheduler.running)),
        kept=tuple(_kept(each) for each in prefixes.kept.values()) if prefixes is not None else (),
        waiting=tuple(map(_number, scheduler.waiting)),
        running=tuple(map(_number, scheduler.running)),
        live=tuple(map(_number, live)),
    )


def _with_rows(running: Sequence[Any]) -> list[Any]:
    """The running sequences, and those whose rows wait for a beam to branch."""
    searches = {id(each.beams): each.beams for each in running if each.beams is not None}
    spare = [each for beams in searches.values() for each in beams.spare]
    return [*running, *(each for each in spare if each not in running)]


def _number(sequence: Any) -> Number:
    return sequence.request, sequence.sample


def _pool(pool: Any) -> PoolSnapshot:
    return PoolSnapshot(
        owners=tuple(pool.owners),
        free=tuple(pool._free),
        cached=tuple(pool._cached.values()),
        names=dict(pool._keys),
    )


def _row(sequence: Any, limit: int) -> RowSnapshot:
    row = sequence.row
    return RowSnapshot(
        number=_number(sequence),
        length=row.length,
        known=max(len(sequence.ids), row.length) if sequence.beams is not None else len(sequence.ids),
        most=min(sequence.total, limit),
        source=row.source,
        promised=len(sequence.source or ()),
        slot=row.slot,
        pages=tuple(map(tuple, row.pages)),
        dropped=tuple(row.dropped),
        names=tuple(sequence.names),
    )


def _kept(checkpoint: Any) -> KeptSnapshot:
    pages = {group: tuple(pages) for group, pages in checkpoint.pages.items()}
    return KeptSnapshot(tokens=checkpoint.tokens, pages=pages, slot=checkpoint.slot)


# ---------------------------------------------------------------- the rules


def check(found: Snapshot) -> list[str]:
    """List the rules that a snapshot breaks, a line each; none of a sound engine."""
    return [*_check_pools(found), *_check_slots(found), *_check_rows(found), *_check_queues(found)]


def _check_pools(found: Snapshot) -> Iterator[str]:
    """Every page is free, cached or owned, by as many as name it; a named page is owned or cached."""
    for number, pool in enumerate(found.pools):
        named = Counter(page for row in found.rows for page in row.pages[number])
        named.update(page for kept in found.kept for page in kept.pages.get(number, ()))
        owned, count = len(pool.owners) - pool.owners.count(0), len(pool.owners)
        states = len(pool.free), len(pool.cached), owned
        if sum(states) != count:
            yield f"pool {number}: {states[0]} free + {states[1]} cached + {owned} owned pages are not all {count}"
        if len(named) != owned or any(pool.owners[page] != times for page, times in named.items()):
            wrong = {page: times for page, times in named.items() if pool.owners[page] != times}
            yield f"pool {number}: {owned} pages have owners, {len(named)} are in use (miscounted: {wrong})"
        idle = {*pool.free, *pool.cached}
        if len(idle) != len(pool.free) + len(pool.cached) or any(pool.owners[page] for page in idle):
            yield f"pool {number}: a page is in two states at once"
        if set(pool.cached) - set(pool.names) or set(pool.free) & set(pool.names):
            yield f"pool {number}: a cached page has no name, or a free page has one"
        if len(set(pool.names.values())) != len(pool.names):
            yield f"pool {number}: two pages have one name"


def _check_slots(found: Snapshot) -> Iterator[str]:
    """Every slot of recurrent states is free, a row's or a checkpoint's, and only one of these."""
    kept = [each.slot for each in found.kept if each.slot is not None]
    every = [*found.free_slots, *(row.slot for row in found.rows), *kept]
    if sorted(every) != list(range(found.slots)):
        parts = f"{len(found.free_slots)} free + {len(found.rows)} of rows + {len(kept)} of checkpoints"
        yield f"slots: {parts} are not each of {found.slots} once"


def _check_rows(found: Snapshot) -> Iterator[str]:
    for row in found.rows:
        place = f"request {row.number[0]}, sample {row.number[1]}"
        if not row.length <= min(row.known, row.most):
            yield f"{place}: {row.length} tokens are computed, {row.known} are known and {row.most} may be kept"
        if row.source not in (0, row.promised):
            yield f"{place}: {row.source} tokens of its source are kept, {row.promised} were given"
        for number, group in enumerate(found.groups):
            for fault in _check_row(found, row, number, group):
                yield f"{place}, pool {number}: {fault}"


def _check_row(found: Snapshot, row: RowSnapshot, number: int, group: Group) -> Iterator[str]:
    """A row has pages for the tokens that its next one sees and no others, and alone owns those it may write."""
    page, pages, dropped, pool = found.page, row.pages[number], row.dropped[number], found.pools[number]
    if group.cross:
        if dropped or len(pages) != -(-row.promised // page):
            yield f"{len(pages)} pages for a source of {row.promised} tokens"
        yield from _check_source(found, row, number)
        return
    first = group.first_seen(row.length)
    if dropped * page > first:
        yield f"the {dropped} pages before it are gone, and its next token sees token {first}"
    if (dropped + len(pages)) * page < group.count_slots(row.length):
        yield f"{len(pages)} pages after {dropped} do not reach its {row.length} tokens"
    if len(pages) > (most := group.pages(row.most, found.new, page)):
        yield f"{len(pages)} pages, {most} would do"
    written = (
        group.count_slots(row.length) // page if group.full else 0
    )  # a window's pages move, so that all are written
    for place, each in enumerate(pages, dropped):
        last = (place + 1) * group.rate - 1  # the page of tokens that it is named by
        if place >= written and (pool.owners[each] != 1 or each in pool.names):
            kept = "is kept for reuse" if each in pool.names else f"has {pool.owners[each]} owners"
            yield f"page {each} will be written, and {kept}"
        elif group.full and each in pool.names and pool.names[each] not in row.names[last : last + 1]:
            yield f"page {each} is named for other tokens than those it holds"


def _check_source(found: Snapshot, row: RowSnapshot, number: int) -> Iterator[str]:
    """A source that is kept for reuse lies in the store once, in the pages that have its names."""
    names, pages = found.pools[number].names, row.pages[number]
    if row.source and found.shares and [names.get(page) for page in pages] != [*row.names]:
        yield "the pages of its source have other names than its tokens give"
    if not row.source and names.keys() & {*pages}:
        yield "pages that its source will be written to are kept for reuse"


def _check_queues(found: Snapshot) -> Iterator[str]:
    """Every live sequence runs or waits, and those that came first run first."""
    queues = [*found.running, *found.waiting]
    if sorted(set(queues)) != sorted(found.live):
        yield f"queues: {len(found.running)} run and {len(found.waiting)} wait, {len(found.live)} live"
    if queues != sorted(queues):
        yield "queues: a sequence is before one that came earlier"


def check_budget(counts: Iterable[tuple[int, bool]], budget: int, *, cut: bool = True) -> list[str]:
    """List what is wrong with the chunks planned for a step: for each how many tokens it has and whether it is part of
    a prompt. Next tokens go first; parts of prompts share what is left of the budget, and get a token if nothing is.
    Without `cut`, parts have sizes of their own (tiles, whole prompts), and one alone may be larger than that."""
    counts = list(counts)
    ahead = sum(count for count, prompt in counts if not prompt)
    prompts = [count for count, prompt in counts if prompt]
    faults = []
    if any(count < 1 for count, _ in counts):
        faults.append("plan: a chunk has no token")
    if sum(prompts) > max(1, budget - ahead) and (cut or len(prompts) > 1):
        faults.append(f"plan: {sum(prompts)} tokens of prompts and {ahead} next ones, the budget is {budget}")
    return faults


def check_drained(found: Snapshot) -> list[str]:
    """List what an engine without requests still holds for rows; what it keeps for reuse may stay."""
    faults = check(found)
    if found.rows or found.waiting or found.live:
        faults.append(f"drained: {len(found.rows)} rows and {len(found.waiting)} waiting sequences are left")
    for number, pool in enumerate(found.pools):
        kept = sum(len(each.pages.get(number, ())) for each in found.kept)
        owned = len(pool.owners) - pool.owners.count(0)
        if owned != kept:
            faults.append(f"drained: pool {number} has {owned} owned pages, checkpoints have {kept}")
    return faults


def check_initial(found: Snapshot) -> list[str]:
    """List what is kept by an engine that has forgotten all: its pools must be as when they were made."""
    faults = check_drained(found)
    for number, pool in enumerate(found.pools):
        if len(set(pool.free)) != len(pool.owners) or pool.names:
            faults.append(f"forgotten: pool {number} has {len(pool.free)} free pages of {len(pool.owners)}")
    if len(found.free_slots) != found.slots:
        faults.append(f"forgotten: {len(found.free_slots)} slots are free of {found.slots}")
    return faults


def ensure_drained(engine: Any) -> None:
    """Raises ZooError, with the first broken rule, for an engine without requests that still holds something."""
    faults = check_drained(snapshot(engine))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ZooError(f"engine: {faults[0]}{more} (a fault of the engine: please report it)")
