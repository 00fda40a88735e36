"""Find changes that bring the KV cache under a budget: fewer key-value heads, or a window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from zoo.analysis.solve.bisection import find_crossing
from zoo.analysis.solve.proportions import ModelSource
from zoo.compose.targets import compose_model, spec_of_composed
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.errors import ConfigError


def find_smaller_caches(
    model: ModelSource, overrides: Iterable[str], most: float, setup: Setup
) -> list[dict[str, object]]:
    """Find single changes that bring a model's KV cache to `most` bytes or less, each as small as possible: the most
    key-value heads that divide the query heads, and the widest window.

    The first row is the unchanged model; if its cache is small enough, there is no other row. A row has its `overrides`
    and the cache's `bytes`. A change is left out if the attention has no such field, or if no value of the field
    suffices. Raises ConfigError for a model without a cache, and for a budget of 0 or less.
    """
    if most <= 0:
        raise ConfigError(f"bytes: must be above 0, found {most:g}")
    typed = list(overrides)
    spec = spec_of_composed(compose_model(model, typed))
    held = kv_cache(spec, setup)["bytes"]
    if not held:
        raise ConfigError("bytes: this model generates nothing and keeps no cache (a decoder would)")
    found = [{"change": None, "overrides": typed, "bytes": held, "fits": held <= most}]

    def count(key: str, value: int) -> int:
        made = compose_model(model, [*typed, f"{key}={value}"])
        return kv_cache(spec_of_composed(made), setup)["bytes"]

    searches: dict[str, Callable[[str], int | None]] = {
        "n_kv_heads": lambda key: next((heads for heads in _divisors(spec) if count(key, heads) <= most), None),
        "window": lambda key: find_crossing(lambda value: count(key, value) / most, 1, setup.tokens(spec)) or None,
    }
    for change, search in searches.items() if held > most else ():
        for key in (change, f"attention.{change}"):
            try:
                value = search(key)
            except ConfigError:
                continue  # nothing in this model reads the key
            if value is not None:
                made = [*typed, f"{key}={value}"]
                found.append({"change": change, "overrides": made, "bytes": count(key, value), "fits": True})
            break
    return found


def _divisors(spec: Priced) -> Iterator[int]:
    """List numbers of key-value heads, smaller than the model's, that divide all layers' query heads, largest first."""
    blocks = [block for tower in spec.towers().values() if tower.causal for block in tower.blocks.values()]
    query = [heads for block in blocks if (heads := getattr(block.attention, "n_heads", None))]
    kept = [heads for block in blocks if (heads := getattr(block.attention, "n_kv_heads", None))]
    for heads in range(max(kept, default=1) - 1, 0, -1):
        if all(each % heads == 0 for each in query):
            yield heads
