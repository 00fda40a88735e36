"""One call for every figure of `zoo stats`."""

from typing import Any

from zoo.costs import flops, params
from zoo.costs.cache import kv_cache
from zoo.costs.memory import memory
from zoo.costs.setup import Setup


def price(spec: Any, setup: Setup | None = None, **changes: Any) -> dict[str, Any]:
    """Every figure of a set-up, or of the one that `changes` are the fields of, as plain data.

    Raises ConfigError for a set-up at fault.
    """
    setup = Setup(**changes) if setup is None else setup
    counted = params.count(spec)
    cache = kv_cache(spec, setup)
    return {
        "params": counted,
        "flops": flops.count(spec, setup.tokens(spec)),
        "kv_cache": cache,
        "memory": memory(spec, counted["total"], cache["bytes"], setup),
    }
