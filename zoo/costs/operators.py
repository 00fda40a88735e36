# B sequences, T new tokens of each, S tokens of a sequence, E experts, k of them a token
"""Count each operator of a pass: its FLOPs, and the bytes of weights, cache and states that it moves.

An operator is one slot outside the layers (embedding, head …), or one sub-layer or attention core (QKᵀ, PV, states) of
all layers of a kind together. Bytes are the least that a pass can move: each used weight once, each visible key and
value once a sequence, recurrent states read and written. Tensors between operators stay on the chip. Writing a step's
own keys and values is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.costs.cache_sizes import STATE_BYTES
from zoo.costs.flops import is_row_wise, reads_memory
from zoo.costs.rows import AttentionRow, CostTable, PartRow, Priced, RouterRow, absorbs, count_values, tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.sums import Amount, compute_chance
from zoo.model.step import SECOND
from zoo.spec import Embedding, Experts, Linear, Tied
from zoo.spec.parts import count_kinds

if TYPE_CHECKING:
    from zoo.model.attention.base import Attention
    from zoo.model.attention.indexer import Indexer
    from zoo.model.tower import Tower


class Span(NamedTuple):
    """The tokens of a pass in a tower: `new` ones of each sequence after `held` cached ones, and `memory` tokens that
    an encoder read. `made` says whether cross-attention's keys and values exist already, `expanded` whether MLA caches
    the keys and values of every head in place of its latent."""

    new: int
    held: int
    memory: int
    made: bool
    expanded: bool = False


def span(tower: Tower, spec: Priced, context: int, decode: bool) -> Span | None:
    """Give the tokens of a pass in a tower. With `decode` the pass computes the last of `context` tokens; None for an
    encoder, which takes no part. A prefill goes up to the first logits: an encoder or a lone decoder reads `context`
    tokens; the decoder of an encoder-decoder makes cross-attention's keys and values and writes one token."""
    if decode:
        return Span(1, context - 1, context, True) if tower.causal else None
    return Span(1 if tower.causal and tower is not spec else context, 0, context, False)


class Chosen(NamedTuple):
    """Experts, or the rows of a table: `count` weights of `size` bytes each, of which a token reads `k`."""

    size: Amount
    count: Amount
    k: Amount

    def distinct(self, tokens: Amount) -> Amount:
        """Give the expected number of distinct weights that T tokens read, choosing uniformly: E·(1 − (1 − k/E)^T).

        Real routers are less even and read fewer. Example: 8 experts, top 2, 4 tokens: 8·(1 − 0.75⁴) = 5.47.
        """
        if self.k >= self.count:
            return self.count
        return self.count * compute_chance(self.k, self.count, tokens)


@dataclass
class Operator:
    """The work of the parts of one sub-layer in all layers of a kind, or of one slot outside the layers. With `core` it
    is the work of QKᵀ, PV and states of an attention.

    `new` is the number of the pass's tokens in each sequence. `flops` and `own` (bytes of cache and states) count one
    sequence. `weights` (bytes that every token uses) and `chosen` (weights that depend on the token: experts, rows of a
    table) count the whole batch.
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


def operators(spec: Priced | CostTable, setup: Setup, *, decode: bool, expanded: bool = False) -> dict[str, Operator]:
    """List every operator of a pass by name, on one rank of tensor parallelism. With `decode` the pass decodes a token,
    otherwise it is a prefill. With `expanded` MLA caches the keys and values of every head."""
    table = tabulate(spec)
    found: dict[str, Operator] = {}
    for where, tower in table.towers.items():
        what, own = span(tower, table.spec, setup.tokens(table.spec), decode), table.of(where)
        if what is None:
            continue
        what = what._replace(expanded=expanded)
        for row in own.parts:
            if times := _times(row, tower, what):
                _add(found.setdefault(operator_name(row), Operator(what.new)), row, times, setup)
        for row in own.attentions:
            core = found.setdefault(f"{operator_name(row)}.core", Operator(what.new, core=True))
            _add_core(core, row, what, setup)
        _add_states(found, where, tower, what, setup)
    return found


def _times(row: PartRow, tower: Tower, what: Span) -> int:
    """Count the tokens of a sequence that a part is applied to."""
    if reads_memory(row):
        return 0 if what.made else what.memory
    once = is_row_wise(row) or (tower.causal and row.slot == "head")
    return 1 if once else what.new


def operator_name(row: PartRow | AttentionRow | RouterRow) -> str:
    """Name the operator a row belongs to, such as `encoder.layer.ffn`. All norms of a layer are one operator."""
    slot = "norms" if row.kind is not None and row.roles[0] == "norm" else row.roles[0]
    return ".".join(filter(None, (row.where, row.kind, slot)))


def _add(operator: Operator, row: PartRow, times: int, setup: Setup) -> None:
    part = row.part
    operator.flops += part.flops * row.used * times / setup.tp
    size = row.used * DTYPES[setup.dtype] / setup.tp
    of = part.of if isinstance(part, Tied) else part
    if isinstance(of, Embedding):
        operator.chosen.append(Chosen(of.width * size, of.count, of.reads))
    elif isinstance(of, Experts):
        operator.chosen.append(Chosen(of.of.params * size, of.count, of.expected_count))
    elif isinstance(of, Linear):
        operator.weights += (of.params if of.flops else 0) * size  # unused without global tokens (Longformer)
    else:
        operator.weights += count_values(of.shapes()) * size


def _add_core(operator: Operator, row: AttentionRow, what: Span, setup: Setup) -> None:
    look, attention = row.look, row.attention
    pairs = look.pairs(what.new, what.held, what.memory)
    absorbed = what.held > 0 and what.new == 1 and not what.expanded
    flops = row.pair_flops(pairs, decoding=absorbed) + row.other_flops(what.new, what.held)
    own = 0.0
    if row.tower.causal:
        # Keys that the last query sees, without a window that is kept as a state (`near`).
        seen = look._replace(near=0).pairs(1, what.held + what.new - 1, what.memory)
        own += seen * _cached(attention, what.expanded, setup.tp) * DTYPES[setup.cached]
        moved = 2 if what.held else 1  # states are read and written; before the first token there is none to read
        own += moved * count_values(attention.state()) * STATE_BYTES / setup.tp
    operator.flops += flops * row.used / setup.tp
    operator.own += own * row.used


def _add_states(found: dict[str, Operator], where: str, tower: Tower, what: Span, setup: Setup) -> None:
    """Add the states that feed-forwards and n-grams read and write while generating (RWKV's channel mix, the token
    counts of a router with a capacity)."""
    for kind, block in tower.blocks.items() if tower.causal else ():
        ngrams: Any = getattr(block, "ngrams", None)
        of_ngrams = ngrams.state() if ngrams else {}
        of_mixer = block.attention.state().keys() | of_ngrams
        of_ffn = {name: shape for name, shape in block.state().items() if name.removeprefix(SECOND) not in of_mixer}
        for part, states in (("ffn", of_ffn), ("ngrams", of_ngrams)):
            if states:
                values = count_values(states) * count_kinds(tower.pattern)[kind]
                moved = 2 if what.held else 1
                found[".".join(filter(None, (where, kind, part)))].own += moved * values * STATE_BYTES / setup.tp


def _cached(attention: Attention | Indexer, expanded: bool, tp: int) -> float:
    """Count the cached values of a token on a rank: heads are divided over ranks, a latent is whole on each."""
    if expanded and absorbs(attention):
        return attention.core_flops(1) / 2 / tp  # a multiply-add for each value of each head
    shapes = attention.attended().values()
    return sum(math.prod(shape) / (min(tp, shape[0]) if len(shape) > 1 else 1) for shape in shapes)


def mixtures(spec: Priced | CostTable) -> Iterator[tuple[str, RouterRow]]:
    """List every router of the causal towers, each after the name of its operator."""
    table = tabulate(spec)
    return ((operator_name(row), row) for row in table.routers if table.towers[row.where].causal)
