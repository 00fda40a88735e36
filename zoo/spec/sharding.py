"""Divide a component's fields among the ranks of tensor parallelism.

A rank's component is a smaller component of the same kind, so that its weights, cache and FLOPs come from its own
`parts`, `cache` and `core_flops`. Example: `split(GQA(n_heads=32, n_kv_heads=8, …), 16, equal=("n_heads",),
shared=("n_kv_heads",))` has n_heads=2 and n_kv_heads=1, each key head being on two ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from zoo.errors import ConfigError, refuse
from zoo.spec.spec import Spec

S = TypeVar("S", bound=Spec)


def split(spec: S, ranks: int, *, equal: Collection[str], shared: Collection[str] = ()) -> S:
    """Return a rank's part of a component: 1/`ranks` of each field in `equal`. A field in `shared` (a number of key
    heads, say) is divided likewise; if it is smaller than the number of ranks, each of its units is on several ranks.

    Raises ConfigError with a line for each field that does not divide, or if the part is not a valid component.
    """
    sizes = {name: getattr(spec, name) for name in (*equal, *shared)}
    refuse(_uneven(sizes, ranks, equal))
    try:
        return replace(spec, **{name: max(1, size // ranks) for name, size in sizes.items() if size})  # type: ignore[type-var]
    except ValidationError as error:
        found = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"tp: {ranks} leaves a rank an invalid part: {found}") from error


def _uneven(sizes: dict[str, int | None], ranks: int, equal: Collection[str]) -> Iterator[str]:
    for name, size in sizes.items():
        if name in equal:
            yield from uneven(name, size or 0, ranks)
        elif size and size % ranks and ranks % size and size not in [sizes[each] for each in equal]:
            would = f"{divisors(size)} and multiples of {size} would do"
            yield f"tp: {ranks} neither divides {name}={size} nor is a multiple of it ({would})"


def hold_whole(self: S, ranks: int) -> S:
    """Return the component itself: the `shard` of a component that every rank holds whole."""
    return self


def refuse_ranks(why: str) -> Any:
    """Make the `shard` of a component that cannot be divided: it raises ConfigError, with the reason, if there are
    several ranks."""

    def shard(self: S, ranks: int) -> S:
        if ranks > 1:
            raise ConfigError(f"tp: {why} (tp=1)")
        return self

    return shard


def uneven(name: str, size: int, ranks: int) -> Iterator[str]:
    """Yield a line if the number of ranks does not divide a size."""
    if size % ranks:
        yield f"tp: {ranks} does not divide {name}={size} ({divisors(size)} would do)"


def divisors(size: int) -> str:
    """List the numbers of ranks that divide a size, up to 64."""
    return ", ".join(str(ranks) for ranks in range(1, min(size, 64) + 1) if size % ranks == 0)
