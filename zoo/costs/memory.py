# S tokens of a sequence, B sequences, W window
"""Bytes: KV cache, weights, training states."""

import math
from typing import Any

from zoo.spec import components, walk


def kv_cache(spec: Any, context: int, batch: int, bytes_per_value: float, dtype: str) -> dict[str, Any]:
    """Bytes that generation keeps for `batch` sequences of `context` tokens; a window layer keeps at most its window.

    `bytes_per_token` is what one more token costs while every layer still keeps all of them.
    """
    per_token, held = 0.0, 0.0
    for name, block in spec.blocks.items():
        window = block.attention.visible_window
        values = sum(
            math.prod(shape) * copies
            for _, component, copies in components(block, spec.d_model)
            for shape in component.cache().values()
        )
        layers = spec.pattern.count(name)
        per_token += values * layers * bytes_per_value
        held += values * layers * bytes_per_value * min(context, window or context)
    return {
        "bytes_per_token": round(per_token),
        "bytes": round(held * batch),
        "tokens": context,
        "batch": batch,
        "dtype": dtype,
    }


def memory(spec: Any, total: int, cache_bytes: int, context: int, batch: int, bytes_per_value: float) -> dict[str, Any]:
    """Bytes of weights, and of what stands beside them when training with AdamW in float32 or generating.

    `generate_peak` is weights, cache, and a prefill's widest layer (an estimate: its input, norm, output and inner
    values).
    `loss_head` is the logits' share of a training step if they are not chunked: 12 bytes for each token and word.
    """
    weights = round(total * bytes_per_value)
    prefill = round(batch * context * (3 * spec.d_model + widest(spec)) * bytes_per_value)
    return {
        "weights": weights,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "loss_head": 12 * spec.vocab_size * batch * context,
        "generate_peak": weights + cache_bytes + prefill,
    }


def widest(spec: Any) -> int:
    """Most values that one token's pass through a single sub-layer holds at once: the outputs of its matrix
    products."""
    sums: dict[str, int] = {}
    for path, _, part, _ in walk(spec, spec.d_model):
        if part.flops and path.startswith("blocks."):
            slot = ".".join(path.split(".")[:3])
            width = getattr(part, "d_out", 0) or part.of.d_out * part.active_count  # type: ignore[attr-defined]
            sums[slot] = sums.get(slot, 0) + width
    return max(sums.values(), default=0)
