# S tokens of a sequence, t tokens held before, W window
"""FLOPs: two for each multiply-add of a matrix product; norms, softmax and activations are not counted.

A look-up costs nothing; the head counts whether tied or not; a mixture counts the experts that a token meets. Attention
counts the (query, key) pairs that its mask lets through.
"""

from collections.abc import Callable
from typing import Any

from zoo.spec import Spec, components, walk

CONVENTION = "exact: matrix products, visible pairs only, 2 FLOPs a multiply-add; backward = 2 × forward"


def visible_pairs(new: int, held: int, window: int | None) -> int:
    """(query, key) pairs of `new` causal queries after `held` tokens, each seeing at most `window` keys, itself
    included."""
    if window is None or window >= held + new:
        return new * held + new * (new + 1) // 2
    short = min(new, max(0, window - held))  # queries that do not fill the window yet
    return short * held + short * (short + 1) // 2 + (new - short) * window


def product_flops(spec: Any, *, head: bool = True) -> int:
    """Forward FLOPs of one token through every matrix product, the head's among them or not."""
    parts = walk(spec, spec.d_model)
    return sum(part.flops * copies for path, _, part, copies in parts if head or not path.startswith("head."))


def core_flops(spec: Any, pairs: Callable[[int | None], int]) -> int:
    """Forward FLOPs that no weight explains, with the visible pairs given as a function of a layer's window."""
    return sum(
        component.core_flops(pairs(_window(component))) * copies
        for _, component, copies in components(spec, spec.d_model)
    )


def _window(component: Spec) -> int | None:
    return component.visible_window if component.axis == "attention" else None  # type: ignore[attr-defined]


def count(spec: Any, context: int) -> dict[str, Any]:
    """FLOPs of one sequence of `context` tokens.

    `forward` and `train` are per token, the mean over the sequence, `train` being three times forward. `prefill` is a
    whole prompt with logits for its last token alone; `decode` one token when `context` are in the sequence, itself
    included.
    """
    product, core = product_flops(spec), core_flops(spec, lambda window: visible_pairs(context, 0, window))
    head = product - product_flops(spec, head=False)
    forward = product + core / context
    return {
        "convention": CONVENTION,
        "context": context,
        "forward": round(forward),
        "train": round(3 * forward),
        "prefill": (product - head) * context + head + core,
        "decode": product + core_flops(spec, lambda window: visible_pairs(1, context - 1, window)),
    }
