# B sequences, T new tokens of each, S tokens of a sequence, E experts, k of them a token
"""Count each operator of a pass: its FLOPs, and the bytes of weights, cache and states that it moves.

An operator is the products of one sub-layer in all layers of a kind, or the core of its attention, or the head. Bytes
are the least that a pass can move: each weight it meets once, each key and value that a query sees once a sequence,
recurrent states read and written. What one operator hands to the next is taken to stay on the chip, and a step's own
keys and values are not counted a second time for being written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.costs.cache import STATE_BYTES
from zoo.costs.flops import is_row_wise, reads_memory
from zoo.costs.rows import AttentionRow, CostTable, PartRow, Priced, RouterRow, absorbs, tabulate
from zoo.costs.sums import Amount, compute_chance
from zoo.model.step import SECOND
from zoo.spec import Embedding, Experts, Linear, Tied
from zoo.spec.parts import count_kinds

if TYPE_CHECKING:
    from zoo.model.attention.base import Attention
    from zoo.model.attention.indexer import Indexer
    from zoo.model.tower import Tower


class Span(NamedTuple):
    """The tokens of a pass in a tower: `new` ones of each sequence after `held` cached ones. `memory` is the number of
    tokens that the encoder read; `made` says whether cross-attention's keys and values of them exist already."""

    new: int
    held: int
    memory: int
    made: bool


def span(tower: Tower, spec: Priced, context: int, decode: bool) -> Span | None:
    """Give a tower's Span: of decoding the last of `context` tokens, or of a prompt up to its first logits. An
    encoder-decoder reads the prompt, makes cross-attention's keys and values, and begins to write. None for a tower
    that has nothing to do."""
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
    """`count` equal weights of `size` bytes, of which a token reads `k`: experts, or the rows of a table."""

    size: Amount
    count: Amount
    k: Amount

    def distinct(self, tokens: Amount) -> Amount:
        """Expected number of them that `tokens` tokens read, each choosing uniformly: E·(1 − (1 − k/E)^T).

        Real routers are less even, so fewer are read. Example: 8 experts, top 2, 4 tokens: 8·(1 − 0.75⁴) = 5.47.
        """
        if self.k >= self.count:
            return self.count
        return self.count * compute_chance(self.k, self.count, tokens)


@dataclass
class Operator:
    """The products of one sub-layer in all layers of a kind, or with `core` its attention's QKᵀ and PV and its states.

    `flops` and `own` (bytes of cache and states) are of one sequence; `weights`, bytes that every token uses, and
    `chosen`, those that depend on what tokens choose, of the whole batch.
    """

    new: Amount
    core: bool = field(default=False, kw_only=True)
    flops: Amount = 0
    weights: Amount = 0
    own: Amount = 0
    chosen: list[Chosen] = field(default_factory=list)

    def weight_bytes(self, batch: Amount) -> Amount:
        return self.weights + sum(each.size * each.distinct(self.new * batch) for each in self.chosen)

    def bytes(self, batch: Amount) -> Amount:
        return self.weight_bytes(batch) + self.own * batch


def operators(spec: Priced | CostTable, context: int, widths: Widths, *, decode: bool) -> dict[str, Operator]:
    """List every operator of a pass by name, on one rank of tensor parallelism; layers of a kind are one operator."""
    table = tabulate(spec)
    found: dict[str, Operator] = {}
    for where, tower in table.towers.items():
        what, own = span(tower, table.spec, context, decode), table.of(where)
        if what is None:
            continue
        for row in own.parts:
            if times := _times(row, tower, what):
                _add(found.setdefault(operator_name(row), Operator(what.new)), row, times, widths)
        for row in own.attentions:
            core = found.setdefault(f"{operator_name(row)}.core", Operator(what.new, core=True))
            _add_core(core, row, what, widths)
        _add_states(found, where, tower, what, widths)
    return found


def _times(row: PartRow, tower: Tower, what: Span) -> int:
    """Count the tokens of a sequence that a part is applied to."""
    if reads_memory(row):
        return 0 if what.made else what.memory
    once = is_row_wise(row) or (tower.causal and row.slot == "head")
    return 1 if once else what.new


def operator_name(row: PartRow | AttentionRow | RouterRow) -> str:
    """Name the operator a row belongs to: `encoder.layer.ffn`. The norms of a layer are small, and one operator."""
    slot = "norms" if row.kind is not None and row.roles[0] == "norm" else row.roles[0]
    return ".".join(filter(None, (row.where, row.kind, slot)))


def _add(operator: Operator, row: PartRow, times: int, widths: Widths) -> None:
    part = row.part
    operator.flops += part.flops * row.used * times / widths.tp
    size = row.used * widths.weight / widths.tp
    of = part.of if isinstance(part, Tied) else part
    if isinstance(of, Embedding):
        operator.chosen.append(Chosen(of.width * size, of.count, of.reads))
    elif isinstance(of, Experts):
        operator.chosen.append(Chosen(of.of.params * size, of.count, of.expected_count))
    elif isinstance(of, Linear):
        operator.weights += (of.params if of.flops else 0) * size  # none where no token passes (Longformer's globals)
    else:
        operator.weights += sum(map(math.prod, of.shapes().values())) * size


def _add_core(operator: Operator, row: AttentionRow, what: Span, widths: Widths) -> None:
    look, attention = row.look, row.attention
    pairs = look.pairs(what.new, what.held, what.memory)
    absorbed = what.held and what.new == 1 and not widths.expanded
    core = (attention.decode_flops if absorbed else attention.core_flops)(pairs)
    flops = core + attention.state_flops() * what.new + attention.pass_flops(row.tower.d_model, what.new, what.held)
    own = 0.0
    if row.tower.causal:
        # Keys that the last query sees, but those of a window that is a state.
        seen = look._replace(near=0).pairs(1, what.held + what.new - 1, what.memory)
        own += seen * _cached(attention, widths) * widths.cached
        moved = 2 if what.held else 1  # states are read and written; there is none to read before the first token
        own += moved * sum(map(math.prod, attention.state().values())) * STATE_BYTES / widths.tp
    operator.flops += flops * row.used / widths.tp
    operator.own += own * row.used


def _add_states(found: dict[str, Operator], where: str, tower: Tower, what: Span, widths: Widths) -> None:
    """Add the states that feed-forwards read and write while generating (RWKV's channel mix, counts of a capacity), and
    those of n-grams."""
    for kind, block in tower.blocks.items() if tower.causal else ():
        ngrams: Any = getattr(block, "ngrams", None)
        of_ngrams = ngrams.state() if ngrams else {}
        of_mixer = block.attention.state().keys() | of_ngrams
        of_ffn = {name: shape for name, shape in block.state().items() if name.removeprefix(SECOND) not in of_mixer}
        for part, states in (("ffn", of_ffn), ("ngrams", of_ngrams)):
            if states:
                values = sum(map(math.prod, states.values())) * count_kinds(tower.pattern)[kind]
                moved = 2 if what.held else 1
                found[".".join(filter(None, (where, kind, part)))].own += moved * values * STATE_BYTES / widths.tp


def _cached(attention: Attention | Indexer, widths: Widths) -> float:
    """Count the cached values of a token on a rank. Heads are divided over ranks; a latent is on every rank."""
    if widths.expanded and absorbs(attention):
        return attention.core_flops(1) / 2 / widths.tp  # a multiply-add for each value of each head
    shapes = attention.attended().values()
    return sum(math.prod(shape) / (min(widths.tp, shape[0]) if len(shape) > 1 else 1) for shape in shapes)


def mixtures(spec: Priced | CostTable) -> Iterator[tuple[str, RouterRow]]:
    """List every router of a decoding model, by its operator."""
    table = tabulate(spec)
    return ((operator_name(row), row) for row in table.routers if table.towers[row.where].causal)


def reductions(spec: Priced, context: int, *, decode: bool) -> int:
    """Count the vectors of a sequence that tensor parallelism sums over its ranks in a pass: for each token, as many a
    layer as its block says."""
    summed = 0
    for tower in spec.towers().values():
        what = span(tower, spec, context, decode)
        if what is not None:
            layers = sum(block.reductions * count_kinds(tower.pattern)[kind] for kind, block in tower.blocks.items())
            summed += layers * what.new
    return summed
