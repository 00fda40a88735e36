"""One call for every figure of `zoo stats`."""

from typing import Any

from zoo.costs import flops, memory, params
from zoo.errors import ConfigError, did_you_mean

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes a value, by the name users give a dtype."""


def price(spec: Any, *, context: int | None = None, batch: int = 1, dtype: str = "bf16") -> dict[str, Any]:
    """Every figure for `batch` sequences of `context` tokens (the model's max_seq_len unless given), as plain data.

    Raises ConfigError for a dtype it does not know, or a context or batch below 1.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: unknown {dtype!r}{did_you_mean(dtype, DTYPES)} (one of: {', '.join(DTYPES)})")
    context = int(spec.max_seq_len if context is None else context)
    wrong = [f"{name}: must be 1 or more, found {n}" for name, n in (("context", context), ("batch", batch)) if n < 1]
    if wrong:
        raise ConfigError(*wrong)
    counted = params.count(spec)
    cache = memory.kv_cache(spec, context, batch, DTYPES[dtype], dtype)
    return {
        "params": counted,
        "flops": flops.count(spec, context),
        "kv_cache": cache,
        "memory": memory.memory(spec, counted["total"], cache["bytes"], context, batch, DTYPES[dtype]),
    }
