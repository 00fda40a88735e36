# S tokens of a sequence, B sequences, W window
"""What generation keeps of the tokens before: KV cache, cross-attention's, and recurrent states."""

import math
from typing import Any

from zoo.costs.setup import DTYPES, Setup

STATE_BYTES = 4
"""Of a value of a recurrent state, which is float32 whatever the model's dtype."""


def kv_cache(spec: Any, setup: Setup) -> dict[str, Any]:
    """Bytes that generation keeps for a set-up's sequences; a window layer keeps at most its window.

    `bytes_per_token` is what one more token costs while every layer still keeps all of them. `bytes` also holds what
    cross-attention made of an encoder's `context` tokens, and the states of recurrent layers, which no token adds to.
    """
    context, dtype = setup.tokens(spec), setup.cache_dtype or setup.dtype
    bytes_per_value = DTYPES[dtype]
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
        "bytes": round(held * setup.batch),
        "tokens": context,
        "batch": setup.batch,
        "dtype": dtype,
    }


def _values(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
