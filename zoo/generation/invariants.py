"""Check the invariants of an engine's pools, rows and queues between two steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from zoo.cache.pool_store import LayerGroup
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.generation.engine import Engine


def list_held(engine: Engine) -> list[Any]:
    """List the sequences with a row: running ones, and spare ones of beam searches (`Beams.spare`)."""
    running = engine.scheduler.running
    searches = {id(each.beams): each.beams for each in running if each.beams is not None}
    spare = [each for beams in searches.values() for each in beams.spare]
    return [*running, *(each for each in spare if each not in running)]


def list_checkpoints(engine: Engine) -> list[Any]:
    """List the prefix cache's checkpoints of windows and recurrent states."""
    return [] if engine.prefixes is None else list(engine.prefixes.kept.values())


def list_live(engine: Engine) -> list[Any]:
    """List the sequences that have not ended."""
    return [each for request in engine.live.values() for each in request if each.finished is None]


def check(engine: Engine) -> list[str]:
    """List the violated invariants of an engine between two steps, one line each. Empty for a sound engine."""
    return [*_check_pools(engine), *_check_slots(engine), *_check_rows(engine), *_check_queues(engine)]


def _check_pools(engine: Engine) -> Iterator[str]:
    """Check that every page is in exactly one state: free, cached or owned. The number of owners of an owned page is
    the number of rows and checkpoints that list it. A cached page has a key, a free page has none, and keys are
    unique."""
    for number, pool in enumerate(engine.store.pools):
        named = Counter(page for each in list_held(engine) for page in each.row.pages[number])
        named.update(page for kept in list_checkpoints(engine) for page in kept.pages.get(number, ()))
        free, cached, names = pool._free, pool._cached.values(), pool._keys
        owned, count = len(pool.owners) - pool.owners.count(0), len(pool.owners)
        if len(free) + len(cached) + owned != count:
            yield f"pool {number}: {len(free)} free + {len(cached)} cached + {owned} owned pages are not all {count}"
        if len(named) != owned or any(pool.owners[page] != times for page, times in named.items()):
            wrong = {page: times for page, times in named.items() if pool.owners[page] != times}
            yield f"pool {number}: {owned} pages have owners, {len(named)} are in use (miscounted: {wrong})"
        idle = {*free, *cached}
        if len(idle) != len(free) + len(cached) or any(pool.owners[page] for page in idle):
            yield f"pool {number}: a page is in two states at once"
        if set(cached) - set(names) or set(free) & set(names):
            yield f"pool {number}: a cached page has no name, or a free page has one"
        if len(set(names.values())) != len(names):
            yield f"pool {number}: two pages have one name"


def _check_slots(engine: Engine) -> Iterator[str]:
    """Check that every slot of recurrent states occurs exactly once in the free list, in a row or in a checkpoint."""
    free, slots = engine.store.free_slots, engine.store.slots
    rows = [each.row.slot for each in list_held(engine)]
    kept = [each.slot for each in list_checkpoints(engine) if each.slot is not None]
    if sorted([*free, *rows, *kept]) != list(range(slots)):
        parts = f"{len(free)} free + {len(rows)} of rows + {len(kept)} of checkpoints"
        yield f"slots: {parts} are not each of {slots} once"


def _check_rows(engine: Engine) -> Iterator[str]:
    for each in list_held(engine):
        place, row, promised = f"request {each.request}, sample {each.sample}", each.row, len(each.source or ())
        known = len(each.ids) if each.beams is None else max(len(each.ids), row.length)
        most = min(each.total, engine.scheduler.limit)
        if not row.length <= min(known, most):
            yield f"{place}: {row.length} tokens are computed, {known} are known and {most} may be kept"
        if row.source not in (0, promised):
            yield f"{place}: {row.source} tokens of its source are kept, {promised} were given"
        for number, group in enumerate(engine.store.groups):
            for fault in _check_row(engine, each, number, group):
                yield f"{place}, pool {number}: {fault}"


def _check_row(engine: Engine, sequence: Any, number: int, group: LayerGroup) -> Iterator[str]:
    """Check a row's pages. They cover what the next token sees, and no more than the row can need. No other row owns
    the pages that this row may write. The keys of full pages are those of the row's tokens."""
    row, page, pool = sequence.row, engine.store.page, engine.store.pools[number]
    pages, dropped, names = row.pages[number], row.dropped[number], pool._keys
    if group.cross:
        promised = len(sequence.source or ())
        if dropped or len(pages) != -(-promised // page):
            yield f"{len(pages)} pages for a source of {promised} tokens"
        yield from _check_source(engine, sequence, number)
        return
    first = group.first_seen(row.length)
    if dropped * page > first:
        yield f"the {dropped} pages before it are gone, and its next token sees token {first}"
    if (dropped + len(pages)) * page < group.count_slots(row.length):
        yield f"{len(pages)} pages after {dropped} do not reach its {row.length} tokens"
    if len(pages) > (most := group.pages(min(sequence.total, engine.scheduler.limit), engine.store.new, page)):
        yield f"{len(pages)} pages, {most} would do"
    written = (
        group.count_slots(row.length) // page if group.full else 0
    )  # a window's pages move, so that all are written
    for place, each in enumerate(pages, dropped):
        last = (place + 1) * group.rate - 1  # the token page that names it
        if place >= written and (pool.owners[each] != 1 or each in names):
            kept = "is kept for reuse" if each in names else f"has {pool.owners[each]} owners"
            yield f"page {each} will be written, and {kept}"
        elif group.full and each in names and names[each] not in sequence.names[last : last + 1]:
            yield f"page {each} is named for other tokens than those it holds"


def _check_source(engine: Engine, sequence: Any, number: int) -> Iterator[str]:
    """Check the keys of a source's pages: none before the encoder has read the source; afterwards the keys of its
    tokens, if sources are kept for reuse."""
    names, row = engine.store.pools[number]._keys, sequence.row
    pages = row.pages[number]
    if row.source and engine.sources is not None and [names.get(page) for page in pages] != [*sequence.names]:
        yield "the pages of its source have other names than its tokens give"
    if not row.source and names.keys() & {*pages}:
        yield "pages that its source will be written to are kept for reuse"


def _check_queues(engine: Engine) -> Iterator[str]:
    """Check that every live sequence is running or waiting, in the order of arrival."""
    running, waiting, live = (
        [(each.request, each.sample) for each in queue]
        for queue in (engine.scheduler.running, engine.scheduler.waiting, list_live(engine))
    )
    queues = [*running, *waiting]
    if sorted(set(queues)) != sorted(live):
        yield f"queues: {len(running)} run and {len(waiting)} wait, {len(live)} live"
    if queues != sorted(queues):
        yield "queues: a sequence is before one that came earlier"


def check_budget(counts: Iterable[tuple[int, bool]], budget: int, *, cut: bool = True) -> list[str]:
    """List the faults of a step's plan. `counts` has (number of tokens, whether it is part of a prompt) for each chunk.
    Prompt chunks share the budget that decoding tokens leave, at least one token. Without `cut`, chunks have fixed
    sizes (tiles, whole prompts), and a single chunk may exceed the budget."""
    counts = list(counts)
    ahead = sum(count for count, prompt in counts if not prompt)
    prompts = [count for count, prompt in counts if prompt]
    faults = []
    if any(count < 1 for count, _ in counts):
        faults.append("plan: a chunk has no token")
    if sum(prompts) > max(1, budget - ahead) and (cut or len(prompts) > 1):
        faults.append(f"plan: {sum(prompts)} tokens of prompts and {ahead} next ones, the budget is {budget}")
    return faults


def check_drained(engine: Engine) -> list[str]:
    """List the violated invariants of an engine without requests. Pages and slots may only be kept for reuse."""
    faults = check(engine)
    held, waiting = list_held(engine), engine.scheduler.waiting
    if held or waiting or list_live(engine):
        faults.append(f"drained: {len(held)} rows and {len(waiting)} waiting sequences are left")
    for number, pool in enumerate(engine.store.pools):
        kept = sum(len(each.pages.get(number, ())) for each in list_checkpoints(engine))
        owned = len(pool.owners) - pool.owners.count(0)
        if owned != kept:
            faults.append(f"drained: pool {number} has {owned} owned pages, checkpoints have {kept}")
    return faults


def check_initial(engine: Engine) -> list[str]:
    """List the violated invariants of an engine that forgot prefixes and sources: pools must be as at the start."""
    faults = check_drained(engine)
    for number, pool in enumerate(engine.store.pools):
        if len(set(pool._free)) != len(pool.owners) or pool._keys:
            faults.append(f"forgotten: pool {number} has {len(pool._free)} free pages of {len(pool.owners)}")
    if len(engine.store.free_slots) != engine.store.slots:
        faults.append(f"forgotten: {len(engine.store.free_slots)} slots are free of {engine.store.slots}")
    return faults


def ensure_drained(engine: Engine) -> None:
    """Raise ZooError with the first violated invariant if an engine without requests holds anything for rows."""
    faults = check_drained(engine)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ZooError(f"engine: {faults[0]}{more} (a fault of the engine: please report it)")
