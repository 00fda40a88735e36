# R rank
"""Explain partial training: adapters, frozen weights, and the FLOPs of the backward pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.analysis.explain.line import Line, Sheet, count_layers, name_component
from zoo.analysis.explain.parameters import list_component_formulas
from zoo.analysis.explain.terms import Number, Term, name_number, symbol, term, total
from zoo.costs.flops import SequenceFlops, count_training
from zoo.costs.partial_training import PartialBackward, add_again
from zoo.costs.rows import PartRow, Priced, tabulate
from zoo.costs.setup import Setup
from zoo.costs.tuning import TunedModel, apply_tuning

PAPER = "b·a·x beside W·x, Hu et al., 2021"
BACKWARD = "2 FLOP a weight if it trains, and 2 if something before it does"
TOKEN, SEQUENCE = "FLOP a token", "FLOP"


def trace_tuned(model: Priced, setup: Setup) -> TunedModel | None:
    """Return the TunedModel of a traced model, with the adapters' rank as a symbol; None if all weights train."""
    tuned = setup.tune(model)
    if tuned is None:
        return None
    tuning = next(iter(tuned.ends.values())).whole
    return apply_tuning(model, replace(tuning, rank=name_number("rank", tuning.rank)))


def list_tuned_lines(tuned: TunedModel, figures: Mapping[str, Any]) -> list[Line]:
    """List the lines of the parameters that train: adapters by component and kind of layer, then the model's own."""
    sheet, trained, groups = Sheet("Trained"), figures["trained"], {}
    for each in tuned.adapters:
        groups.setdefault((each.where, each.kind, each.slot), Counter())[each.path, math.prod(each.shape)] += 1
    towers, added = tuned.spec.towers(), []
    for (where, kind, slot), found in groups.items():
        by_count: dict[int, list[Term]] = {}
        for (_, values), count in found.items():
            by_count.setdefault(count, []).append(term(values))
        made = total(symbol("adapted layers", count) * total(values) for count, values in by_count.items())
        name = f"{name_component(where, slot, towers[where])} adapters" + (f" in {kind}" if len(groups) > 1 else "")
        added.append(sheet.add(name, made, "parameters", "a [R, d_in] and b [d_out, R] of each product"))
    if added:
        sheet.sum("adapters", added, "parameters", PAPER, "trained.adapters")
    own = symbol("own weights that train", trained["parameters"] - trained["adapters"])
    parts = [own, *([symbol("adapters", trained["adapters"])] if added else [])]
    count = sheet.sum("parameters that train", parts, "parameters", "", "trained.parameters")
    every = symbol("total", figures["params"]["total"]) + symbol("adapters", trained["adapters"])
    sheet.add("share that trains", count / every, "of all", "", "trained.share")
    return sheet.lines


def add_partial_training(sheet: Sheet, tuned: TunedModel, setup: Setup, whole: Term) -> None:
    """Add the lines on training part of a model: the forward pass of adapters, the backward pass by component, and the
    figures `train` and `train_hardware`. `whole` is the forward FLOPs of a sequence without adapters."""
    partial, table, context = PartialBackward(tuned), tabulate(tuned.spec), setup.tokens(tuned.spec)
    traced, parts = name_number("context", context), [whole]
    for which, label, source in ((0, "adapters forward", PAPER), (1, "backward", BACKWARD)):

        def count(row: PartRow, which: int = which) -> Any:
            return partial.count_part(row._replace(used=1), traced)[which] if row.part.flops else 0

        for piece in list_component_formulas(table, count, stored=False):
            parts.append(sheet.add(f"{piece.name} {label}", piece.all, SEQUENCE, source))
    own = SequenceFlops(table, context, setup.convention, setup.recompute, setup.documents(tuned.spec))
    fused = 0
    for row in table.attentions:
        assert row.kind is not None
        name, pairs = name_component(row.where, row.slot, row.tower, row.kind), own.count_pairs(row.look)
        pairs = name_number(f"{name} pairs", pairs)
        core, within = partial.count_core(row._replace(used=1), pairs, context)
        fused += int(within) * row.used
        if core:
            why = "gradients of queries, keys and values, where something before them trains"
            parts.append(sheet.add(f"{name} core backward", count_layers(row.tower, row.kind) * core, SEQUENCE, why))
    plain, hardware = count_training(own.count_pass(), "exact", setup.recompute, own.count_again())
    again, inside = (
        symbol(name, int(value)) if value else Number(0)
        for name, value in (("forward that runs again", hardware - plain), ("core backward, fused", fused))
    )
    train, hardware = add_again(total(parts), again, inside, setup.convention)
    why = "forward, and the backward pass of what trains"
    sheet.add("train", round(train / term(traced)), TOKEN, why, "flops.train")
    why = f"with recomputation: {setup.recompute}"
    sheet.add("train on hardware", round(hardware / term(traced)), TOKEN, why, "flops.train_hardware")
