# S tokens of a sequence, B sequences
"""Bytes of weights, and of what stands beside them when training or generating."""

from typing import Any

from zoo.costs.setup import DTYPES, Setup
from zoo.spec import walk


def memory(spec: Any, total: int, cache_bytes: int, setup: Setup) -> dict[str, Any]:
    """Bytes of weights, and of what stands beside them when training with AdamW in float32 or generating.

    `generate_peak` is weights, cache, and a prefill's widest layer (an estimate: its input, norm, output and inner
    values); a model that writes nothing has none. `loss_head` is the logits' share of a training step if they are not
    chunked: 12 bytes for each token and word.
    """
    context, batch, bytes_per_value = setup.tokens(spec), setup.batch, DTYPES[setup.dtype]
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
