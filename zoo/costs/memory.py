# S tokens of a sequence, B sequences, W window
"""Bytes: KV cache, weights, training states."""

import math
from typing import Any

from zoo.spec import walk

STATE_BYTES = 4
"""Of a value of a recurrent state, which is float32 whatever the model's dtype."""


def kv_cache(spec: Any, context: int, batch: int, bytes_per_value: float, dtype: str) -> dict[str, Any]:
    """Bytes that generation keeps for `batch` sequences of `context` tokens; a window layer keeps at most its window.

    `bytes_per_token` is what one more token costs while every layer still keeps all of them. `bytes` also holds what
    cross-attention made of an encoder's `context` tokens, and the states of recurrent layers, which no token adds to.
    """
    per_token, held = 0.0, 0.0
    for tower in spec.towers().values():
        for name, block in tower.blocks.items() if tower.causal else ():
            layers, window = tower.pattern.count(name), block.attention.visible_window
            values = _values(block.attention.cache()) * bytes_per_value
            crossed = _values(block.cross.cache()) * bytes_per_value if block.cross else 0
            states = _values(block.state()) * STATE_BYTES
            per_token += values * layers
            held += (values * min(context, window or context) + crossed * context + states) * layers
    return {
        "bytes_per_token": round(per_token),
        "bytes": round(held * batch),
        "tokens": context,
        "batch": batch,
        "dtype": dtype,
    }


def _values(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def memory(spec: Any, total: int, cache_bytes: int, context: int, batch: int, bytes_per_value: float) -> dict[str, Any]:
    """Bytes of weights, and of what stands beside them when training with AdamW in float32 or generating.

    `generate_peak` is weights, cache, and a prefill's widest layer (an estimate: its input, norm, output and inner
    values); a model that writes nothing has none. `loss_head` is the logits' share of a training step if they are not
    chunked: 12 bytes for each token and word.
    """
    weights = round(total * bytes_per_value)
    prefill = round(batch * context * (3 * spec.d_model + widest(spec)) * bytes_per_value)
    figures = {"weights": weights, "gradients": 4 * total, "optimizer": 8 * total}
    if any(tower.head.kind != "none" for tower in spec.towers().values()):
        figures["loss_head"] = 12 * spec.vocab_size * batch * context
    if any(tower.causal for tower in spec.towers().values()):
        figures["generate_peak"] = weights + cache_bytes + prefill
    return figures


def widest(spec: Any) -> int:
    """Most values that one token's pass through a single sub-layer holds at once: the outputs of its matrix
    products."""
    sums: dict[str, int] = {}
    for path, _, part, _ in walk(spec, spec.d_model):
        steps = path.split(".")
        if part.flops and "blocks" in steps[:2]:
            slot = ".".join(steps[: steps.index("blocks") + 3])
            width = getattr(part, "d_out", 0) or part.of.d_out * part.active_count  # type: ignore[attr-defined]
            sums[slot] = sums.get(slot, 0) + width
    return max(sums.values(), default=0)
