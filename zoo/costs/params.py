"""Count parameters: in total, active for one token, by component and by kind of layer."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from zoo.costs.rows import CostTable, PartRow, Priced, count_values, tabulate
from zoo.spec import (
    EXPERTS,
    LOGITS,
    SHARED_EXPERT,
    SHARED_GATE,
    TOKENS,
    Buffer,
    Embedding,
    Linear,
    Tied,
    owner_of,
)
from zoo.spec.parts import count_kinds

APART = (EXPERTS, "router", SHARED_EXPERT, SHARED_GATE)
"""Roles within a feed-forward that are counted as components of their own."""


def count_parameters(spec: Priced | CostTable) -> dict[str, Any]:
    """Count parameters as they are stored: a tied weight once, and weights that several layers share once.

    `active` counts the parameters that one token uses: top_k experts, and whole tables, although a token looks up one
    row of each. It leaves out modules that training alone runs. `active_without_input_table` also leaves out the token
    table unless a head is tied to it (the literature gives both figures: 37.6 and 36.6 B for DeepSeek-V3). `embedding`
    counts the tables of tokens, positions and position biases, and an untied head. `buffers` are saved but not trained;
    no other figure includes them. `by_layer_kind` gives for each kind the number of `layers`, the number of layers with
    weights of their own (`stored`, 1 if all share), and the parameters of the stored layers.
    """
    table = tabulate(spec)
    by_component: Counter[str] = Counter()
    for row in table.parts:
        by_component[component_of(row)] += row.part.params * row.stored
    total, active = by_component.total(), _active(table.served.parts)
    tables = (row for row in table.parts if isinstance(row.part, Embedding) or row.part.role == LOGITS)
    embedding = sum(row.part.params * row.stored for row in tables)
    return {
        "total": total,
        "active": active,
        "active_without_input_table": active - _looked_up(table),
        "embedding": embedding,
        "non_embedding": total - embedding,
        "buffers": sum(
            count_values(row.part.shapes()) * row.stored for row in table.parts if isinstance(row.part, Buffer)
        ),
        "by_component": {name: held for name, held in by_component.items() if held},
        "by_layer_kind": _by_layer_kind(table),
    }


def component_of(row: PartRow) -> str:
    """Name the component that a part is counted under: in a layer its slot (attention, ffn, norm …) or a role of APART.
    A norm within attention or the embedding counts there; every other norm counts as "norm"."""
    if row.kind is None:
        return "norm" if row.owner.axis == "norm" and row.slot != "embedding" else row.slot
    return next((role for role in row.roles[1:] if role in APART), row.slot)


def _active(rows: Iterable[PartRow]) -> int:
    return sum(row.part.active * row.stored for row in rows)


def _looked_up(table: CostTable) -> int:
    """Count the parameters of token tables that no head is tied to."""
    tables = {row.path: row.part.params for row in table.parts if row.part.role == TOKENS}
    for row in table.parts:
        if isinstance(row.part, Tied) and isinstance(row.part.of, Linear):
            tables.pop(owner_of(row.path, table.ties), None)
    return sum(tables.values())


def _by_layer_kind(table: CostTable) -> dict[str, dict[str, int]]:
    """Count parameters by kind of layer. In an encoder-decoder kinds are named by tower: `encoder.layer`."""
    kinds = {}
    for where, tower in table.towers.items():
        stored = tower.stack.stored()
        for kind in tower.blocks:
            inside = [row for row in table.parts if row.where == where and row.kind == kind]
            kinds[f"{where}.{kind}" if where else kind] = {
                "layers": count_kinds(tower.pattern)[kind],
                "stored": count_kinds(stored)[kind],
                "total": sum(row.part.params * row.stored for row in inside),
                "active": _active(inside),
            }
    return kinds
