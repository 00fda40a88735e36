"""Price each box of a figure: parameters, FLOPs of a token, bytes of cache. The sums over boxes are the model's
prices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from zoo.costs.cache_sizes import list_cache_rows, memory_tokens, token_cache_bytes
from zoo.costs.flops import SequenceFlops
from zoo.costs.rows import AttentionRow, CostTable, PartRow, count_values, tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.model.attention.base import Attention
from zoo.spec import CROSS, Sized, Spec, components

BoxPlace = tuple[str, str | None, str]
"""Key of a box: its tower, its kind of layer (None outside layers), and the path of its part there. Outside layers the
path may have two names: `head.out`."""


@dataclass(frozen=True)
class Share:
    """A box's cost, summed over all layers of its kind. `flops` are the FLOPs of a token's forward pass, averaged over
    the context. `cache` is the bytes of all sequences, states included."""

    params: int = 0
    active: int = 0
    flops: float = 0
    cache: float = 0

    def __add__(self, other: Share) -> Share:
        return Share(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Share)))


def list_boxes(block: Any, d_model: int) -> dict[str, Any]:
    """List the parts of a layer that are drawn as boxes, by name. A part that consists of several mixers is replaced by
    its mixers, such as `attention.softmax`."""
    found = {}
    for name, part in block.parts(d_model).items():
        spec, width = (part.spec, part.d_model) if isinstance(part, Sized) else (part, d_model)
        inner: dict[str, Any] = dict(spec.parts(width)) if isinstance(spec, Attention) else {}
        several = len(inner) > 1 and all(isinstance(each, Attention) for each in inner.values())
        found |= {f"{name}.{each}": Sized(held, width) for each, held in inner.items()} if several else {name: part}
    return found


def price_boxes(spec: Any, setup: Setup) -> dict[BoxPlace, Share]:
    """Price every box: each part of each kind of layer, and each part of a tower outside its layers."""
    table, context = tabulate(spec), setup.tokens(spec)
    rows: dict[BoxPlace, list[Any]] = defaultdict(list)
    boxes = {
        (where, kind): list_boxes(block, tower.d_model)
        for where, tower in spec.towers().items()
        for kind, block in tower.blocks.items()
    }
    for row in (*table.parts, *table.attentions):
        own, name = boxes.get((row.where, row.kind), {}), find_name(row)
        inner = {each: held for each, held in own.items() if each.startswith(f"{name}.")}
        if isinstance(row, AttentionRow) and inner:  # its mixers have the pairs and the states of the row
            for each, held in inner.items():
                rows[row.where, row.kind, each].append(row._replace(attention=held.spec))
        else:
            name = ".".join(name.split(".")[:2])
            rows[row.where, row.kind, name if row.kind is None or name in own else name.split(".")[0]].append(row)
    found = {}
    for place, own in rows.items():
        parts = tuple(row for row in own if isinstance(row, PartRow))
        attentions = tuple(row for row in own if isinstance(row, AttentionRow))
        flops = SequenceFlops(CostTable(spec, table.towers, parts, attentions, ()), context).count_pass().whole
        params, active = (sum(getattr(row.part, name) * row.stored for row in parts) for name in ("params", "active"))
        found[place] = Share(params, active, flops / context)
    for place, cache in price_caches(spec, setup).items():
        found[place] = found.get(place, Share()) + Share(cache=cache)
    return found


def find_name(row: PartRow | AttentionRow) -> str:
    """Return the path of a cost table's row inside its layer, or inside its tower."""
    path = row.path.removeprefix(f"{row.where}.") if row.where else row.path
    return path.removeprefix(f"blocks.{row.kind}.")


def price_caches(spec: Any, setup: Setup) -> dict[BoxPlace, float]:
    """Compute the bytes of caches and states of each kind of layer, for the parts that hold them."""
    context, found = setup.tokens(spec), defaultdict(float)
    crossed_bytes = DTYPES[setup.cached] * memory_tokens(context, setup.engine)
    for row in list_cache_rows(spec, setup):
        parts = list_boxes(row.block, row.tower.d_model)
        cached, states = token_cache_bytes(row, setup, context), row.state * row.layers
        crossed = row.cross_values * crossed_bytes * row.layers
        for kept, size, crosses in (("cache", cached, False), ("state", states, False), ("cache", crossed, True)):
            for name, part in _divide(parts, kept, crosses, row.tower.d_model).items() if size else ():
                found[row.where, row.kind, name] += size * part
    return {place: size * setup.batch for place, size in found.items()}


def _divide(parts: Mapping[str, Any], kept: str, crosses: bool, d_model: int) -> dict[str, float]:
    """Divide a layer's `kept` values ("cache" or "state") among its parts, as fractions. A part counts the values of
    its own, or else of the components inside it."""
    sizes = {}
    for name, part in parts.items():
        inner, role = (part.spec, part.role) if isinstance(part, Sized) else (part, "")
        if isinstance(inner, Spec) and (role == CROSS) is crosses:
            own = count_values(getattr(inner, kept)())
            below = (count_values(getattr(each, kept)()) for _, each, _ in components(inner, d_model))
            sizes[name] = own or sum(below)
    whole = sum(sizes.values())
    return {name: size / whole for name, size in sizes.items() if size} if whole else {next(iter(parts)): 1.0}
