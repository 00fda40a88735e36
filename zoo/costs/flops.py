# S tokens of a sequence, t tokens held before, W window
"""FLOPs: two for each multiply-add of a matrix product; norms, softmax and activations are not counted.

A look-up costs nothing; the head counts whether tied or not; a mixture counts the experts that a token meets. Attention
counts the (query, key) pairs that its mask lets through. An encoder-decoder reads as many tokens as it writes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from zoo.spec import Spec, components, walk

CONVENTION = "exact: matrix products, visible pairs only, 2 FLOPs a multiply-add; backward = 2 × forward"


class Look(NamedTuple):
    """How the tokens of an attention see each other."""

    causal: bool
    cross: bool  # whether they see an encoder's output rather than each other
    window: int | None = None
    chunk: int | None = None

    def pairs(self, new: int, held: int = 0, memory: int = 0) -> int:
        """(query, key) pairs of `new` tokens after `held`, `memory` being the encoder's."""
        if self.cross:
            return new * memory
        if not self.causal:
            return both_ways_pairs(new, self.window)
        if self.chunk is not None:
            return chunked_pairs(held + new, self.chunk) - chunked_pairs(held, self.chunk)
        return visible_pairs(new, held, self.window)


def visible_pairs(new: int, held: int, window: int | None) -> int:
    """(query, key) pairs of `new` causal queries after `held` tokens, each seeing at most `window` keys, itself
    included."""
    if window is None or window >= held + new:
        return new * held + new * (new + 1) // 2
    short = min(new, max(0, window - held))  # queries that do not fill the window yet
    return short * held + short * (short + 1) // 2 + (new - short) * window


def both_ways_pairs(tokens: int, reach: int | None) -> int:
    """Pairs of tokens at most `reach` apart, each with itself included."""
    if reach is None or reach >= tokens - 1:
        return tokens * tokens
    return tokens + 2 * (reach * tokens - reach * (reach + 1) // 2)


def chunked_pairs(tokens: int, chunk: int) -> int:
    """Causal pairs within stretches of `chunk` tokens."""
    whole, rest = divmod(tokens, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


def product_flops(spec: Any, *, head: bool = True) -> int:
    """Forward FLOPs of one token through every matrix product, the head's among them or not."""
    parts = walk(spec, spec.d_model, used=True)
    return sum(part.flops * copies for path, _, part, copies in parts if head or "head" not in path.split(".")[:2])


def core_flops(spec: Any, pairs: Callable[[Look], int], new: int, held: int = 0) -> int:
    """Forward FLOPs of `new` tokens after `held` that no weight explains, with the pairs given as a function of how
    they look."""

    def own(tower: Any, look: Look, attention: Spec) -> int:
        once = attention.pass_flops(tower.d_model, new, held)
        core = attention.decode_flops if held and new == 1 else attention.core_flops
        return core(pairs(look)) + attention.state_flops() * new + once

    return sum(
        own(tower, look, component) * copies
        for tower in spec.towers().values()
        for look, component, copies in _looks(tower)
    )


def _looks(tower: Any) -> Iterator[tuple[Look, Spec, int]]:
    for path, component, copies in components(tower, tower.d_model):
        if component.axis == "attention":
            attention: Any = component
            cross = path.endswith(".cross")
            yield Look(tower.causal, cross, attention.visible_window, attention.visible_chunk), component, copies


def count(spec: Any, context: int) -> dict[str, Any]:
    """FLOPs of one sequence of `context` tokens.

    `forward` and `train` are per token, the mean over the sequence, `train` being three times forward. `prefill` is a
    whole prompt with logits for its last token alone; `decode` one token when `context` are in the sequence, itself
    included: a decoder's alone.
    """
    product = product_flops(spec)
    core = core_flops(spec, lambda look: look.pairs(context, 0, context), context)
    head = product - product_flops(spec, head=False)
    forward = product + core / context
    figures = {
        "convention": CONVENTION,
        "context": context,
        "forward": round(forward),
        "train": round(3 * forward),
        "prefill": (product - head) * context + head + core,
    }
    decoder = [tower for tower in spec.towers().values() if tower.causal]
    if decoder:
        seen = core_flops(decoder[0], lambda look: look.pairs(1, context - 1, context), 1, context - 1)
        figures["decode"] = product_flops(decoder[0]) - memory_flops(decoder[0]) + seen
    return figures


def memory_flops(tower: Any) -> int:
    """Forward FLOPs of making the keys and values of one token of an encoder's output, in all layers."""
    parts = walk(tower, tower.d_model, used=True)
    return sum(part.flops * copies for path, _, part, copies in parts if path.endswith((".cross.k", ".cross.v")))
