# B sequences, T new tokens of each, S tokens of a sequence, E experts, k of them a token
"""What each operator of a pass computes and moves: FLOPs, and bytes of weights, cache and states.

An operator is the products of one sub-layer in all layers of a kind, or the core of its attention, or the head. Bytes
are the least that a pass can move: each weight it meets once, each key and value that a query sees once a sequence,
recurrent states read and written. What one operator hands to the next is taken to stay on the chip, and a step's own
keys and values are not counted a second time for being written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zoo.costs.cache import STATE_BYTES
from zoo.costs.flops import Look
from zoo.spec import Embedding, Experts, Linear, Part, Tied, components, walk


class Span(NamedTuple):
    """What a pass runs over in a tower: `new` tokens of each sequence after `held`, where an encoder made `memory`, of
    which keys and values are still to be made or not."""

    new: int
    held: int
    memory: int
    made: bool


def span(tower: Any, spec: Any, context: int, decode: bool) -> Span | None:
    """Of decoding one token, when `context` are in the sequence with it, or of a prompt up to the first logits: an
    encoder-decoder reads it, makes the keys and values that cross-attention needs, and begins to write. None where a
    tower has nothing to do."""
    if decode:
        return Span(1, context - 1, context, True) if tower.causal else None
    return Span(1 if tower.causal and tower is not spec else context, 0, context, False)


class Widths(NamedTuple):
    """Bytes of a weight and of a cached value, and over how many ranks tensor parallelism spreads them."""

    weight: float
    cached: float
    tp: int = 1
    expanded: bool = False  # caches keys and values of every head where a latent would do (MLA)


class Chosen(NamedTuple):
    """`count` alike, `size` bytes each, of which a token meets `k`: experts, or the rows of a table."""

    size: float
    count: int
    k: int

    def distinct(self, tokens: int) -> float:
        """How many of them some token meets, expected when each chooses uniformly and on its own: E·(1 − (1 − k/E)^T).

        Real routers are less even, so that fewer are met.
        """
        if self.k >= self.count:
            return self.count
        return -self.count * math.expm1(tokens * math.log1p(-self.k / self.count))


@dataclass
class Operator:
    """`flops` and `own` are of one sequence, `weights` and `chosen` of the whole batch: bytes that every token meets,
    and those that depend on what tokens choose."""

    new: int
    flops: float = 0
    weights: float = 0
    own: float = 0
    chosen: list[Chosen] = field(default_factory=list)

    def weight_bytes(self, batch: int) -> float:
        return self.weights + sum(each.size * each.distinct(self.new * batch) for each in self.chosen)

    def bytes(self, batch: int) -> float:
        return self.weight_bytes(batch) + self.own * batch


def operators(spec: Any, context: int, widths: Widths, *, decode: bool) -> dict[str, Operator]:
    """Every operator of a pass by name, on one rank of tensor parallelism: layers of a kind together."""
    found: dict[str, Operator] = {}
    for prefix, tower in spec.towers().items():
        what = span(tower, spec, context, decode)
        if what is None:
            continue
        for path, _, part, copies in walk(tower, tower.d_model, used=True):
            if times := _times(path, tower, what):
                operator = found.setdefault(_full(prefix, path), Operator(what.new))
                _add(operator, part, copies, times, widths)
        for path, component, copies in components(tower, tower.d_model):
            if component.axis == "attention":
                found[f"{_full(prefix, path)}.core"] = _core(tower, path, component, copies, what, widths)
    return found


def _times(path: str, tower: Any, what: Span) -> int:
    """Tokens of a sequence that a part sees."""
    if path.endswith((".cross.k", ".cross.v")):
        return 0 if what.made else what.memory
    once = ("head", "pooler") if tower.causal else ("pooler",)
    return 1 if path.split(".")[0] in once else what.new


def _full(prefix: str, path: str) -> str:
    return ".".join(filter(None, (prefix, _name(path))))


def _name(path: str) -> str:
    """`blocks.layer.ffn.experts.up` is part of `layer.ffn`; the norms of a layer are small, and one operator."""
    steps = path.split(".")
    if steps[0] != "blocks":
        return steps[0]
    return f"{steps[1]}.{'norms' if steps[2].endswith('norm') else steps[2]}"


def _add(operator: Operator, part: Part, copies: int, times: int, widths: Widths) -> None:
    operator.flops += part.flops * copies * times / widths.tp
    size = copies * widths.weight / widths.tp
    of = part.of if isinstance(part, Tied) else part
    if isinstance(of, Embedding):
        operator.chosen.append(Chosen(of.width * size, of.count, 1))
    elif isinstance(of, Experts):
        operator.chosen.append(Chosen(of.of.params * size, of.count, of.active_count))
    elif isinstance(of, Linear):
        operator.weights += (of.params if of.flops else 0) * size  # none where no token passes (Longformer's globals)
    else:
        operator.weights += sum(map(math.prod, of.shapes().values())) * size


def _core(tower: Any, path: str, attention: Any, copies: int, what: Span, widths: Widths) -> Operator:
    look = Look(tower.causal, path.endswith(".cross"), attention.visible_window, attention.visible_chunk)
    pairs = look.pairs(what.new, what.held, what.memory)
    absorbed = what.held and what.new == 1 and not widths.expanded
    core = (attention.decode_flops if absorbed else attention.core_flops)(pairs)
    flops = core + attention.state_flops() * what.new + attention.pass_flops(tower.d_model, what.new, what.held)
    own = 0.0
    if tower.causal:
        seen = look.pairs(1, what.held + what.new - 1, what.memory)  # keys that the last query sees
        own += seen * _cached(attention, widths) * widths.cached
        moved = 2 if what.held else 1  # states are read and written; there is none to read before the first token
        own += moved * sum(map(math.prod, attention.state().values())) * STATE_BYTES / widths.tp
    return Operator(what.new, flops=flops * copies / widths.tp, own=own * copies)


def _cached(attention: Any, widths: Widths) -> float:
    """Values of a token on a rank: heads are shared out until each rank has one, a latent is on all of them."""
    if widths.expanded and absorbs(attention):
        return attention.core_flops(1) / 2 / widths.tp  # a multiply-add for each value of each head
    shapes = attention.cache().values()
    return sum(math.prod(shape) / (min(widths.tp, shape[0]) if len(shape) > 1 else 1) for shape in shapes)


def absorbs(attention: Any) -> bool:
    """Whether decoding takes another way than a prompt does, over what is cached as it is."""
    return attention.decode_flops(1) != attention.core_flops(1)


def mixtures(spec: Any) -> Iterator[tuple[str, Any]]:
    """Every router of a model that decodes, by the operator it is in."""
    for prefix, tower in spec.towers().items():
        for path, component, _ in components(tower, tower.d_model) if tower.causal else ():
            if component.axis == "router":
                yield _full(prefix, path), component


def reductions(spec: Any, context: int, *, decode: bool) -> int:
    """Vectors of a sequence that tensor parallelism sums over its ranks in a pass: one for each token and sub-layer
    (Shoeybi et al., 2019, Megatron-LM)."""
    summed = 0
    for tower in spec.towers().values():
        what = span(tower, spec, context, decode)
        if what is None:
            continue
        for kind, block in tower.blocks.items():
            slots = sum(getattr(block, name, None) is not None for name in ("attention", "cross", "ffn"))
            summed += tower.pattern.count(kind) * slots * what.new
    return summed
