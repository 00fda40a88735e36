# T tokens, R rank
"""Count the training FLOPs of a partly trained model: frozen weights, low-rank adapters.

The backward pass of a product y = W·x computes up to two products of the forward pass's size: the gradient of x, if
anything before it trains, and the gradient of W, if W trains. So a product costs 6 FLOPs for each weight and token if
both are needed, 4 if a frozen weight only passes the gradient on, and 2 if nothing up to it trains. A traced forward
pass (`zoo.costs.shadow`) tells which gradients are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.costs.activations import PassShape, list_needs
from zoo.costs.batches import CountPairs, RowFlops, count_by_row, count_forward
from zoo.costs.flops import (
    FLASH_BACKWARD,
    SequenceFlops,
    count_training,
    is_row_wise,
    pair_flops,
    product_flops,
    reads_memory,
)
from zoo.costs.rows import AttentionRow, CostTable, PartRow, tabulate
from zoo.costs.sums import Amount
from zoo.costs.tuning import PartTuning, TunedModel
from zoo.spec import Experts, Linear, Tied

SHORT = 64
"""Tokens of the traced pass: which gradients are needed does not depend on length."""


def count_partial(
    tuned: TunedModel, context: int, convention: str, recompute: str, documents: Sequence[int] | None
) -> dict[str, int]:
    """Count `train` and `train_hardware` per token as `count_flops` does for a model that trains as a whole, adapters
    included; `convention` is exact or hfu. The norms of DoRA's rows, computed once a pass, are not counted. Raises
    UnknownOperation for a pass that cannot be traced."""
    own = SequenceFlops(tabulate(tuned.spec), context, convention, recompute, documents)
    passed, backward = own.count_pass(), PartialBackward(tuned)
    parts = [backward.count_part(row, context) for row in own.table.parts if row.part.flops]
    cores = [backward.count_core(row, own.count_pairs(row.look), context) for row in own.table.attentions]
    plain, hardware = count_training(passed, "exact", own.recompute, own.count_again())
    whole = passed.whole + sum(added + back for added, back in parts) + sum(each for each, _ in cores)
    train, hardware = add_again(whole, hardware - plain, sum(fused for _, fused in cores), convention)
    return {"train": round(train / context), "train_hardware": round(hardware / context)}


def add_again(train: Amount, again: Amount, fused: Amount, convention: str) -> tuple[Amount, Amount]:
    """Return the FLOPs of training without and with recomputation; under `hfu` both include it, and FlashAttention's.
    `again` is the recomputed FLOPs, `fused` the FLOPs of the backward pass that a fused kernel computes."""
    if convention == "hfu":
        train = train + again + fused * ((FLASH_BACKWARD - 2) / 2)
        return train, train
    return train, train + again


def list_partial_passes(tuned: TunedModel) -> tuple[RowFlops, RowFlops]:
    """Return the FLOPs of the forward and of the backward pass of a partly trained model, adapters included. Raises
    UnknownOperation for a pass that cannot be traced."""
    table, partial = tabulate(tuned.spec), PartialBackward(tuned)

    def sum_parts(own: CostTable, which: int, tokens: int, memory: int, head: bool) -> int:
        """Sum the FLOPs of adapters (`which` 0) or of the backward pass (1), for a row or, with `head`, a target."""
        rows = (row for row in own.parts if row.part.flops and (row.slot == "head" and not is_row_wise(row)) == head)
        return round(sum(partial.count_part(row, memory if reads_memory(row) else tokens)[which] for row in rows))

    def forward_tower(own: CostTable, tokens: int, memory: int) -> int:
        return count_forward(own, tokens, memory) + sum_parts(own, 0, tokens, memory, head=False)

    def backward_tower(own: CostTable, tokens: int, memory: int) -> int:
        cores = (partial.count_core(row, row.look.pairs(tokens, 0, memory), tokens)[0] for row in own.attentions)
        return sum_parts(own, 1, tokens, memory, head=False) + round(sum(cores))

    def forward_target(own: CostTable) -> int:
        return product_flops(own) - product_flops(own, head=False) + sum_parts(own, 0, 1, 0, head=True)

    def backward_pairs(own: CostTable, pairs: CountPairs) -> int:
        return round(sum(partial.count_core(row, pairs(row.look), 0)[0] for row in own.attentions))

    return (
        count_by_row(table, forward_tower, forward_target, pair_flops),
        count_by_row(table, backward_tower, lambda own: sum_parts(own, 1, 1, 0, head=True), backward_pairs),
    )


class PartialBackward:
    """The FLOPs of the backward pass of a partly trained model, and of its adapters, by row of the CostTable."""

    def __init__(self, tuned: TunedModel) -> None:
        self.tuned = tuned
        self.needs = list_needs(tuned.spec, PassShape(min(tuned.spec.max_seq_len, SHORT), model=tuned))

    def count_part(self, row: PartRow, tokens: int) -> tuple[Amount, Amount]:
        """Count the forward pass of a part's adapter, and the backward pass of the part with its adapter. If a
        component reads the part's weight without calling the part, the trace shows only the weight's gradient; the
        input's gradient is assumed to be needed."""
        tuning, path = self._find_tuning(row)
        forward = row.part.flops * row.used * (1 if is_row_wise(row) else tokens)
        taken = tuning.reached, f"{path}.weight" not in tuning.frozen
        of_input, of_weight = self.needs.products.get((row.where, row.kind, path), taken)
        found = forward * (of_input + of_weight) if row.learns else 0
        if path not in tuning.adapted:
            return 0, found
        part, times = row.part, row.used * tokens
        if isinstance(part, Experts):
            times *= part.expected_count
        part = part.of if isinstance(part, Experts | Tied) else part
        assert isinstance(part, Linear)
        a, b = (width * times * 2 * tuning.whole.rank for width in (part.d_in, part.d_out))  # a [R, d_in], b [d_out, R]
        return a + b, found + a * (1 + of_input) + 2 * b

    def count_core(self, row: AttentionRow, pairs: int, tokens: int) -> tuple[Amount, Amount]:
        """Count the backward FLOPs of an attention without its products with weights; also return how many of them a
        fused kernel computes. With 0 `tokens` only the pairs count. A recurrent mixer needs all gradients of its state,
        or none."""
        section = row.where, row.kind
        if not row.learns or not any(any(need) for key, need in self.needs.products.items() if key[:2] == section):
            return 0, 0
        core = row.pair_flops(pairs) * row.used
        other = 0
        if tokens:  # else the pairs are further ones of tokens that are counted already
            other = 2 * row.other_flops(tokens) - row.attention.constant_flops(row.tower.d_model, tokens, pairs)
            other *= row.used
        cores = (each for key, each in self.needs.cores.items() if key[:2] == section)
        found = next((each for each in cores if row.look.cross == each.crosses), None)
        if found is None:
            return 2 * core + other, 0
        products = found.width * (found.of_q + found.of_k) + found.v_width * (max(found.of_q, found.of_k) + found.of_v)
        times = products / (found.width + found.v_width)
        fused = core * (int(times) if times == int(times) else times)
        return fused + (other if products else 0), fused

    def _find_tuning(self, row: PartRow) -> tuple[PartTuning, str]:
        """Find the tuning of a part's layer (outside the layers: of its tower), and the part's path below it."""
        path = row.path.removeprefix(f"{row.where}." if row.where else "")
        if row.kind is None:
            return self.tuned.ends[row.where], path
        return self.tuned.layers[row.where, row.kind], path.removeprefix(f"blocks.{row.kind}.")
