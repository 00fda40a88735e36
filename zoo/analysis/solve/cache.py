"""Find changes that bring the KV cache under a budget: fewer key-value heads, or a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from zoo.analysis.solve.recipe import ModelSource
from zoo.analysis.solve.search import find_crossing
from zoo.compose.targets import compose_model, spec_of_composed
from zoo.costs.cache import kv_cache
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.errors import ConfigError


def find_smaller_caches(
    model: ModelSource, overrides: Iterable[str], most: float, setup: Setup
) -> list[dict[str, Any]]:
    """Find single changes that bring a model's KV cache to `most` bytes or less, each as small as possible: the most
    key-value heads that divide the query heads, and the widest window.

    The first row is the unchanged model. A row has its `overrides` and the cache's `bytes`. A change is left out if
    this attention has no such field, or if no value of it suffices. Raises ConfigError for a model without a cache.
    """
    if most <= 0:
        raise ConfigError(f"bytes: must be above 0, found {most:g}")
    typed = list(overrides)
    spec = spec_of_composed(compose_model(model, typed))
    held = kv_cache(spec, setup)["bytes"]
    if not held:
        raise ConfigError("bytes: this model generates nothing and keeps no cache (a decoder would)")
    found = [{"change": None, "overrides": typed, "bytes": held, "fits": held <= most}]
    if held <= most:
        return found
    for change in ("n_kv_heads", "window"):
        for key in (change, f"attention.{change}"):
            try:
                value = (
                    _key_heads(model, typed, key, spec, most, setup)
                    if change == "n_kv_heads"
                    else (_window(model, typed, key, most, setup, setup.tokens(spec)))
                )
            except ConfigError:
                continue  # nothing in this model reads the key
            if value is not None:
                made = [*typed, f"{key}={value}"]
                held = _bytes(model, made, setup)
                found.append({"change": change, "overrides": made, "bytes": held, "fits": True})
            break
    return found


def _bytes(model: ModelSource, overrides: Iterable[str], setup: Setup) -> int:
    return kv_cache(spec_of_composed(compose_model(model, overrides)), setup)["bytes"]


def _key_heads(model: ModelSource, typed: list[str], key: str, spec: Priced, most: float, setup: Setup) -> int | None:
    for heads in _divisors(spec):
        if _bytes(model, [*typed, f"{key}={heads}"], setup) <= most:
            return heads
    return None


def _divisors(spec: Priced) -> Iterator[int]:
    """List numbers of key-value heads, smaller than the model's, that divide all layers' query heads, largest first."""
    blocks = [block for tower in spec.towers().values() if tower.causal for block in tower.blocks.values()]
    query = [heads for block in blocks if (heads := getattr(block.attention, "n_heads", None))]
    kept = [heads for block in blocks if (heads := getattr(block.attention, "n_kv_heads", None))]
    for heads in range(max(kept, default=1) - 1, 0, -1):
        if all(each % heads == 0 for each in query):
            yield heads


def _window(model: ModelSource, typed: list[str], key: str, most: float, setup: Setup, context: int) -> int | None:
    def share(window: int) -> float:
        return _bytes(model, [*typed, f"{key}={window}"], setup) / most

    return find_crossing(share, 1, context) or None
