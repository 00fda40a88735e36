# S tokens of a sequence, t tokens held before, W window
"""Count FLOPs: two for each multiply-add of a matrix product.

Elementwise work is not counted, here or by torch's counter: norms, softmax, activations, rotations, the mixing of
experts and the decay of a state are bound by memory, not by arithmetic. `elementwise_flops` counts it separately.

A look-up costs nothing. The head counts whether tied or not. A mixture counts the experts that a token goes through.
Layers that share weights count as often as they are used. Attention counts the (query, key) pairs that its mask allows.
An encoder-decoder is assumed to read and to write the same number of tokens.

Frameworks define FLOPs differently, up to twofold in a long context. CONVENTIONS has each definition by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.costs.again import AGAIN, explain_unknown, mark_layers, read_every
from zoo.costs.pairs import Look
from zoo.costs.rows import CostTable, PartRow, Priced, tabulate, tabulate_towers
from zoo.costs.sums import Amount
from zoo.errors import ConfigError, name_options
from zoo.spec import CROSS, LOGITS, READ, ROW, Embedding, Linear, Tied

CONVENTIONS = {
    "exact": "exact: matrix products, visible pairs only, 2 FLOPs a multiply-add; backward = 2 × forward, "
    "an indexer's 0",
    "hfu": "hfu: as exact, and what the hardware computes again, FlashAttention's backward being 2.5 × its forward "
    "(Dao, 2023)",
    "palm": "palm: 6N + 12·L·H·Q·T, every pair of the square, N without tables that are looked up "
    "(Chowdhery et al., 2022, appendix B)",
    "megatron": "megatron: matrix products but the routers', half of the square where causal, all logits "
    "(Megatron-LM; Narayanan et al., 2021, and Korthikanti et al., 2022, count the whole square)",
    "kaplan": "kaplan: 6N, of which forward 2N; N without tables and head, no attention (Kaplan et al., 2020)",
}
"""What each convention counts, and its source."""

MEASURED = ("exact", "hfu")
"""The conventions that count no gradient for a frozen weight. The others count all weights as trained."""

FLASH_BACKWARD = 2.5
"""FLOPs of FlashAttention's backward pass ÷ those of its forward pass: 5 matrix products (scores are recomputed)
against 2."""


# ---------------------------------------------------------------- what a pass computes


def is_row_wise(row: PartRow) -> bool:
    """Whether a part is applied once per row (sequence), not to each token: parts of a pooler, of a head that reads
    whole rows, and parts of role ROW."""
    if row.slot == "pooler" or getattr(row.part, "role", "") == ROW:
        return True
    return row.slot == "head" and getattr(row.owner, "reads_rows", False)


def reads_memory(row: PartRow) -> bool:
    """Whether a part computes cross-attention's keys or values, once for each token of the encoder's output."""
    return CROSS in row.roles and row.part.role == READ


def product_flops(spec: Priced | CostTable, *, head: bool = True) -> int:
    """Forward FLOPs of one token through every matrix product that is applied to each token, with or without the
    `head`."""
    return _flops(spec, lambda row: not is_row_wise(row) and (head or row.slot != "head"))


def row_flops(spec: Priced | CostTable) -> int:
    """Forward FLOPs of the matrix products that are computed once per row (`is_row_wise`)."""
    return _flops(spec, is_row_wise)


def memory_flops(spec: Priced | CostTable) -> int:
    """Forward FLOPs of the keys and values that cross-attention makes from one token of the encoder's output, in all
    layers."""
    return _flops(spec, reads_memory)


def _flops(spec: Priced | CostTable, kept: Callable[[PartRow], bool]) -> int:
    return sum(row.part.flops * row.used for row in tabulate(spec).parts if kept(row))


def pair_flops(spec: Priced | CostTable, pairs: Callable[[Look], int], *, decoding: bool = False) -> int:
    """Forward FLOPs of QKᵀ and PV. `pairs` counts the (query, key) pairs of an attention from its Look. With `decoding`
    MLA attends over its latents."""
    rows = tabulate(spec).attentions
    return sum(row.pair_flops(pairs(row.look), decoding=decoding) * row.used for row in rows)


def other_flops(spec: Priced | CostTable, new: int, held: int = 0) -> int:
    """Count attention's other forward FLOPs for `new` tokens after `held` earlier ones: updating and reading recurrent
    states, and products that all tokens share, with landmarks or a table of positions. `product_flops` and `pair_flops`
    leave them out."""
    return sum(row.other_flops(new, held) * row.used for row in tabulate(spec).attentions)


def skipped_flops(spec: Priced | CostTable, pairs: Callable[[Look], int], new: int) -> int:
    """Count the FLOPs of gradients that are not needed, for `new` tokens: backward pass = 2 × forward pass − these. An
    indexer's products need neither of their two gradients, because no gradient flows through its choice of keys. A
    product with a constant needs only one."""
    table = tabulate(spec)
    once, constant = table.forward_only(), 0
    for row in table.attentions:
        constant += row.attention.constant_flops(row.tower.d_model, new, pairs(row.look)) * row.used
    return 2 * (product_flops(once) * new + core_flops(once, pairs, new)) + constant


def core_flops(spec: Priced | CostTable, pairs: Callable[[Look], int], new: int, held: int = 0) -> int:
    """Sum `pair_flops` and `other_flops`: the forward FLOPs of attention for `new` tokens after `held` earlier ones,
    without products with weights."""
    table = tabulate(spec)
    return pair_flops(table, pairs, decoding=new == 1 and held > 0) + other_flops(table, new, held)


# ---------------------------------------------------------------- the conventions


class PassFlops(NamedTuple):
    """Forward FLOPs of one sequence, as a convention counts them."""

    products: Amount  # products with weights
    pairs: Amount  # QKᵀ and PV
    other: Amount = 0  # recurrent states, shared tables
    choosing: Amount = 0  # the indexers' share of `pairs`
    skipped: Amount = 0  # gradients that nothing needs: backward = 2 · whole − skipped

    @property
    def whole(self) -> Amount:
        return self.products + self.pairs + self.other


def count_flops(
    spec: Priced | CostTable,
    context: int,
    convention: str = "exact",
    recompute: str = "none",
    documents: Sequence[int] | None = None,
    prefix: int = 0,
) -> dict[str, Any]:
    """Count the FLOPs of one sequence of `context` tokens:

    - `forward`, per token: the mean over the sequence.
    - `train`, per token: 3 × `forward`, MTP modules included. `exact` and `hfu` subtract gradients that nothing needs
      (`skipped_flops`).
    - `train_hardware`, per token: `train` plus the recomputation of QKᵀ and PV (`selective`), of a whole forward pass
      (`full`) or of every n-th layer (`every_n`). Under `hfu` `train` includes recomputation as well, and
      FlashAttention's own (FLASH_BACKWARD).
    - `prefill`: a whole prompt of `context` tokens up to the first logits. An encoder-decoder reads the prompt and
      writes one token.
    - `decode`: the last of `context` tokens. An encoder-decoder has read `context` tokens, too.
    - `decode_expanded`, only for MLA: the same token if keys and values of every head are cached, not the latent.

    The last three are absent for the conventions `palm` and `megatron`, for `kaplan` with two towers, and with
    `documents`. A model that generates nothing has `prefill` but no `decode`. `documents` are the lengths of packed
    documents, each of which sees only itself; the first `prefix` tokens all see one another. Both change only `exact`
    and `hfu`; the other conventions count one sequence.

    Raises ConfigError for an unknown convention or recomputation, and for documents or a prefix that the model cannot
    take.
    """
    own = SequenceFlops(tabulate(spec), context, convention, recompute, documents, prefix)
    if (fault := next(own.list_faults(), None)) is not None:
        raise ConfigError(fault)
    train, hardware = count_training(own.count_pass(), convention, recompute, own.count_again())
    served = replace(own, table=own.table.served)
    return {
        "convention": CONVENTIONS[convention],
        "context": context,
        "forward": round(served.count_pass().whole / context),
        "train": round(train / context),
        "train_hardware": round(hardware / context),
        **({} if documents else served.count_generation()),
    }


@dataclass(frozen=True)
class SequenceFlops:
    """The FLOPs of one sequence; the fields are the arguments of `count_flops`."""

    table: CostTable
    context: int
    convention: str = "exact"
    recompute: str = "none"
    documents: Sequence[int] | None = None
    prefix: int = 0

    def count_again(self) -> Amount:
        """Forward FLOPs of the layers that `every_n` recomputes; 0 for any other `recompute`."""
        if read_every(self.recompute) is None:
            return 0
        made = tabulate_towers(mark_layers(self.table.spec, self.recompute).towers(), self.table.spec)
        again = made.select(lambda row: (row.kind or "").endswith(AGAIN))
        return replace(self, table=again).count_pass().whole

    def count_pass(self) -> PassFlops:
        """Forward FLOPs, as the convention counts them."""
        table, context = self.table, self.context
        if self.convention == "kaplan":
            return PassFlops(2 * multiplied(table, head=False) * context, 0)
        if self.convention == "palm":
            return PassFlops(2 * multiplied(table) * context, pair_flops(table, lambda look: context * context))
        products = product_flops(table) * context + row_flops(table)
        other = other_flops(table, context)
        if self.convention == "megatron":
            routers = _flops(table, lambda row: "router" in row.roles)
            square = pair_flops(table, lambda look: context * context)
            causal = pair_flops(table, lambda look: 0 if look.cross or not look.causal else context * context)
            return PassFlops(products - routers * context, square - causal / 2, other)
        pairs = self.count_pairs
        choosing, skipped = pair_flops(table.forward_only(), pairs), skipped_flops(table, pairs, context)
        return PassFlops(products, pair_flops(table, pairs), other, choosing, skipped)

    def count_pairs(self, look: Look) -> int:
        """Count the (query, key) pairs of an attention that its mask allows."""
        lengths = self.documents or (self.context,)
        return sum(look.pairs(tokens, 0, self.context) for tokens in lengths) + look.shown_by(self.prefix)

    def count_generation(self) -> dict[str, int]:
        """Count the FLOPs of a prefill and, for a model that generates, of decoding a token; empty if the convention
        defines neither."""
        table, context, towers = self.table, self.context, self.table.towers
        if self.convention == "kaplan" and len(towers) == 1:
            forward = 2 * multiplied(table, head=False)
            return {"prefill": forward * context, **({"decode": forward} if table.spec.causal else {})}
        if self.convention not in MEASURED:
            return {}
        where = next((name for name, tower in towers.items() if tower.causal), None)
        if where is None:
            core = core_flops(table, lambda look: look.pairs(context), context)
            return {"prefill": sum_prompt(product_flops(table), context, row_flops(table), core)}
        decoder = table.of(where)
        if len(towers) == 1:
            # A decoder with cross-attention reads a memory from outside, taken to be as long as the context.
            read = lambda look: look.pairs(context, 0, context) + look.shown_by(self.prefix)  # noqa: E731
            inner, whole = product_flops(table, head=False), product_flops(table)
            once, core = (whole - inner) + row_flops(table), core_flops(table, read, context)
            prefill = sum_prompt(inner, context, once, core)
        else:
            encoder = table.of("encoder")
            core = core_flops(encoder, lambda look: look.pairs(context), context)
            read = sum_prompt(product_flops(encoder), context, row_flops(encoder), core, memory_flops(decoder))
            prefill = read + _decoded(decoder, 1, context)
        decode, expanded = _decoded(decoder, context, context), _decoded(decoder, context, context, expanded=True)
        return {"prefill": prefill, "decode": decode, **({"decode_expanded": expanded} if expanded != decode else {})}

    def list_faults(self) -> Iterator[str]:
        """List the arguments that are unknown or that the model cannot take, one message each."""
        spec, documents, prefix = self.table.spec, self.documents, self.prefix
        if self.convention not in CONVENTIONS:
            hint = name_options(self.convention, CONVENTIONS)
            yield f"convention: unknown {self.convention!r}{hint}"
        if reason := explain_unknown(self.recompute):
            yield f"recompute: {reason}"
        if documents and (sum(documents) != self.context or min(documents) < 1):
            found = f"{len(documents)} of {sum(documents)} tokens in all, the sequence has {self.context}"
            yield f"documents: {found} (lengths from 1 up that add up to it)"
        if documents and len(self.table.towers) > 1:
            yield f"documents: a model of kind '{spec.kind}' takes none (a decoder does)"
        if documents and prefix:
            yield "prefix: packed documents were given too (one of them)"
        if prefix and not getattr(spec, "prefix_lm", False):
            yield "prefix: this model has no tokens that all see one another (prefix_lm: true would do)"
        if prefix and any(row.attention.causal for row in self.table.attentions):
            yield "prefix: a recurrent mixer reads earlier tokens only (use gqa there)"
        if not 0 <= prefix <= self.context:
            yield f"prefix: is {prefix}, but the sequence has {self.context} tokens (0 to {self.context})"


def count_training(passed: PassFlops, convention: str, recompute: str, layers: Amount = 0) -> tuple[Amount, Amount]:
    """Count the FLOPs of training on a sequence, without and with recomputation; under `hfu` both include it. `passed`
    is the forward pass, `layers` the forward FLOPs of the layers that `every_n` recomputes. Selective recomputation
    does not repeat an indexer's choice."""
    pairs = passed.pairs - passed.choosing
    again = {"none": 0, "selective": pairs, "full": passed.whole}.get(recompute, layers)
    train = passed.whole * 3 - passed.skipped
    if convention == "hfu":
        train = train + pairs * (FLASH_BACKWARD - 2) + again
        return train, train
    return train, train + again


def multiplied(spec: Priced | CostTable, *, head: bool = True) -> int:
    """Count the parameters that multiply a token in one pass. A looked-up table counts 0; a shared layer counts as
    often as it is used. With `head` the head's matrix counts too, tied or not."""
    return sum(multiplied_by(row) * row.used for row in tabulate(spec).parts if head or row.part.role != LOGITS)


def multiplied_by(row: PartRow) -> int:
    """Count the parameters of a part that multiply a token: 0 for a table, all of a tied matrix."""
    part = row.part
    if isinstance(part, Tied) and isinstance(part.of, Linear):
        return part.of.active
    return 0 if isinstance(part, Embedding) else part.active


def _decoded(decoder: CostTable, known: int, memory: int, *, expanded: bool = False) -> int:
    """Forward FLOPs of the last of `known` tokens, when an encoder has read `memory` tokens. With `expanded` MLA caches
    keys and values of every head."""
    held = known - 1
    pairs = pair_flops(decoder, lambda look: look.pairs(1, held, memory), decoding=held > 0 and not expanded)
    return sum_decoding(product_flops(decoder), memory_flops(decoder), pairs + other_flops(decoder, 1, held))


def sum_prompt(products: Amount, context: Amount, once: Amount, core: Amount, memory: Amount = 0) -> Amount:
    """Sum the FLOPs of a prompt of `context` tokens. `products` and `memory` (making cross-attention's keys and values)
    are per token, `once` (products made once) and `core` (pairs and states) for the whole prompt."""
    return products * context + once + core + memory * context


def sum_decoding(products: Amount, memory: Amount, core: Amount) -> Amount:
    """Sum the FLOPs of a decoded token: `products` − `memory` + `core`. `memory` is subtracted because
    cross-attention's keys and values exist already; `core` is the FLOPs of pairs and states."""
    return products - memory + core
