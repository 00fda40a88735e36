# T tokens, R rank
"""Count the training FLOPs of a model of which a part trains: frozen weights, low-rank adapters.

The backward pass of a product y = W·x computes two products of the forward pass's size: the gradient of x, if something
before it trains, and that of W, if W trains. So a product costs 6 FLOPs a weight and token where both are needed, 4
where the weight is frozen above a trained one, and 2 where nothing trains up to it. Which gradients are needed is read
off a traced forward pass (`zoo.costs.shadow`).
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.costs.activations import PassShape, list_needs
from zoo.costs.flops import FLASH_BACKWARD, SequenceFlops, count_training, is_row_wise
from zoo.costs.rows import AttentionRow, PartRow, tabulate
from zoo.costs.sums import Amount
from zoo.costs.tuning import PartTuning, TunedModel
from zoo.spec import Experts, Linear, Tied

SHORT = 64
"""Tokens of the traced pass: which gradients are needed does not depend on length."""


def count_partial(
    tuned: TunedModel, context: int, convention: str, recompute: str, documents: Sequence[int] | None
) -> dict[str, int]:
    """Count `train` and `train_hardware` per token as `count_flops` does for a model that trains as a whole, adapters
    included; `convention` is exact or hfu. Raises UnknownOperation for a pass that cannot be traced."""
    own = SequenceFlops(tabulate(tuned.spec), context, convention, recompute, documents)
    passed, rows = own.count_pass(), PartialBackward(tuned, own)
    products = [rows.count_part(row) for row in own.table.parts if row.part.flops]
    cores = [rows.count_core(row) for row in own.table.attentions]
    train = passed.whole + sum(products) + sum(each for each, _ in cores)
    plain, hardware = count_training(passed, "exact", own.recompute, own.count_again())
    again = hardware - plain
    if own.convention == "hfu":
        train = train + again + (FLASH_BACKWARD - 2) / 2 * sum(fused for _, fused in cores)
        again = 0
    return {"train": round(train / own.context), "train_hardware": round((train + again) / own.context)}


class PartialBackward:
    """The FLOPs of the backward pass of one sequence, row by row, and those of adapters."""

    def __init__(self, tuned: TunedModel, own: SequenceFlops) -> None:
        self.tuned, self.own = tuned, own
        self.needs = list_needs(tuned.spec, PassShape(min(own.context, SHORT), model=tuned))

    def count_part(self, row: PartRow) -> Amount:
        """Count a part's backward pass, and both passes of its adapters. Of a part that reads its weight without
        calling its module, the weight's gradient is known and the input's is taken to be needed."""
        tuning, path = self._find_tuning(row)
        forward = row.part.flops * row.used * (1 if is_row_wise(row) else self.own.context)
        taken = tuning.reached, f"{path}.weight" not in tuning.frozen
        of_input, of_weight = self.needs.products.get((row.where, row.kind, path), taken)
        found = forward * (of_input + of_weight) if row.learns else 0
        if path not in tuning.adapted:
            return found
        part = row.part.of if isinstance(row.part, Experts | Tied) else row.part
        assert isinstance(part, Linear)
        a, b = (
            forward * tuning.whole.rank / width for width in (part.d_out, part.d_in)
        )  # of a [R, d_in], b [d_out, R]
        return found + a * (2 + of_input) + 3 * b

    def count_core(self, row: AttentionRow) -> tuple[Amount, Amount]:
        """Count the backward pass of an attention without its products with weights; and of this, what a fused kernel
        computes at once. A recurrent mixer needs all gradients of its state, or none."""
        section = row.where, row.kind
        if not row.learns or not any(any(need) for key, need in self.needs.products.items() if key[:2] == section):
            return 0, 0
        pairs, tokens = self.own.count_pairs(row.look), self.own.context
        core, other = row.pair_flops(pairs) * row.used, row.other_flops(tokens) * row.used
        other = 2 * other - row.attention.constant_flops(row.tower.d_model, tokens, pairs) * row.used
        cores = (each for key, each in self.needs.cores.items() if key[:2] == section)
        found = next((each for each in cores if row.look.cross == each.crosses), None)
        if found is None:
            return 2 * core + other, 0
        products = found.width * (found.of_q + found.of_k) + found.v_width * (max(found.of_q, found.of_k) + found.of_v)
        fused = core * products / (found.width + found.v_width)
        return fused + (other if products else 0), fused

    def _find_tuning(self, row: PartRow) -> tuple[PartTuning, str]:
        """Find the tuning of the layer, or of the tower outside its layers, that a part is in, and the part's path in
        it."""
        path = row.path.removeprefix(f"{row.where}." if row.where else "")
        if row.kind is None:
            return self.tuned.ends[row.where], path
        return self.tuned.layers[row.where, row.kind], path.removeprefix(f"blocks.{row.kind}.")
