# B batch, S keys, K kv heads, C head width, N pages
"""Keys or values in a cache: of a row each [B, S, K, C], or in pages [N, page, K, C] that a table [B, P] names."""

from __future__ import annotations

from torch import Tensor

from standins.checks import check, int32, shaped


def capacity(cache: Tensor, table: Tensor | None) -> int:
    """How many keys a row can have."""
    return cache.shape[1] if table is None else table.shape[1] * cache.shape[1]


def lengths_of(lengths: Tensor | int | None, q: Tensor, n_rows: int, cache: Tensor, table: Tensor | None) -> list[int]:
    """How many keys each row has; all that fit where nothing is said."""
    room = capacity(cache, table)
    if lengths is None:
        return [room] * n_rows
    if isinstance(lengths, int):
        numbers = [lengths] * n_rows
    else:
        int32(lengths, "cache_seqlens", q, n_rows)
        numbers = lengths.tolist()
    check(all(0 <= each <= room for each in numbers), f"cache_seqlens must lie in 0…{room}, found {numbers}")
    return numbers


def rows_of(index: Tensor | None, q: Tensor, n_rows: int, n_cached: int) -> list[int]:
    """Which row of the cache serves each row of queries."""
    if index is None:
        return list(range(n_rows))
    int32(index, "cache_batch_idx", q, n_rows)
    numbers = index.tolist()
    check(
        all(0 <= each < n_cached for each in numbers), f"cache_batch_idx must lie in 0…{n_cached - 1}, found {numbers}"
    )
    return numbers


def read(cache: Tensor, table: Tensor | None, row: int, start: int, length: int) -> Tensor:
    """Keys start … length − 1 of a row: [length − start, K, C]. Of the table only the pages that hold them are read."""
    if table is None:
        return cache[row, start:length]
    page = cache.shape[1]
    pages = table[row, : -(-length // page)].long()
    _in_pool(pages, cache)
    return cache[pages].flatten(0, 1)[start:length]


def append(cache: Tensor, table: Tensor | None, row: int, length: int, new: Tensor) -> None:
    """Writes new keys [T, K, C] behind a row's `length`, in place."""
    room = capacity(cache, table)
    check(length + len(new) <= room, f"the cache holds {room} keys, {length} and {len(new)} new ones do not fit")
    if table is None:
        cache[row, length : length + len(new)] = new
        return
    for place, each in enumerate(new, start=length):
        page = table[row, place // cache.shape[1]].long()
        _in_pool(page, cache)
        cache[page, place % cache.shape[1]] = each


def _in_pool(pages: Tensor, cache: Tensor) -> None:
    fine = bool(((pages >= 0) & (pages < cache.shape[0])).all())
    check(fine, f"pages must lie in 0…{cache.shape[0] - 1}, found {pages.tolist()}")


def taken(
    q: Tensor,
    held: tuple[Tensor, Tensor],
    new: tuple[Tensor | None, Tensor | None],
    table: Tensor | None,
    n_rows: int,
    *,
    lengths: Tensor | int | None,
    index: Tensor | None,
    leftpad: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The keys and the values that each row of queries reads, once the new ones are added."""
    rows = rows_of(index, q, n_rows, held[0].shape[0] if table is None else table.shape[0])
    told, starts = lengths is not None, starts_of(leftpad, q, n_rows)
    numbers = grown(q, held, new, table, rows, lengths_of(lengths, q, n_rows, held[0], table), told)
    places = list(zip(rows, starts, numbers, strict=True))
    return [read(held[0], table, *place) for place in places], [read(held[1], table, *place) for place in places]


def starts_of(leftpad: Tensor | None, q: Tensor, n_rows: int) -> list[int]:
    """Where the keys of each row begin."""
    if leftpad is None:
        return [0] * n_rows
    int32(leftpad, "cache_leftpad", q, n_rows)
    return leftpad.tolist()


def grown(
    q: Tensor,
    held: tuple[Tensor, Tensor],
    new: tuple[Tensor | None, Tensor | None],
    table: Tensor | None,
    rows: list[int],
    lengths: list[int],
    told: bool,
) -> list[int]:
    """Adds new keys and values to the cache in place, and says how long each row is then."""
    k, v = new
    if k is None or v is None:
        check(k is None, "If key is supplied, value must also be passed in")
        return lengths
    check(told, "If key is supplied, seqlens_k must also be passed in")
    for name, cache, each in (("k", held[0], k), ("v", held[1], v)):
        check(each.dtype == q.dtype, f"{name} must have the same dtype as query, found {each.dtype} and {q.dtype}")
        shaped(each, name, len(rows), k.shape[1], *cache.shape[2:])
        for row, length, added in zip(rows, lengths, each, strict=True):
            append(cache, table, row, length, added)
    return [length + k.shape[1] for length in lengths]
