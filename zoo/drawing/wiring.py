"""Trace how a layer's parts are connected, from its own forward pass: which part reads which, and where values are
added.

The same pass prices activations (`zoo.costs.activations`), on tensors without values. The pass's operations are
collapsed to the layer's parts and to the sums between them, so a new kind of block is drawn without changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.costs.activations import INPUT, PassShape, TowerTrace, make_memory
from zoo.costs.shadow.tape import TapeNode, UnknownOperation, named_failures, taping
from zoo.drawing.shares import list_boxes
from zoo.spec import Sized, Spec

TOKENS = 16
"""Tokens of the traced sequence. The connections do not depend on their number."""

STREAM = "stream"
"""Name of the layer's input, the residual stream, among a node's sources."""

WEIGHT = ""
"""Marker of an operation that reads weights alone."""

JOINS = {"add": "+", "addcmul": "+", "sub": "+", "baddbmm": "+", "mul": "×", "div": "×", "cat": "‖", "stack": "‖"}
"""Signs of nodes at which values join, by operation."""


@dataclass(frozen=True)
class Junction:
    """A node of a layer: a `part` of the block, a place where several values join (`sign`), or a constant factor
    (`sign` is `× 0.22`, say). `sources` are numbers of other nodes, STREAM for the layer's input, "memory" for an
    encoder's output, or a channel's name."""

    number: int
    part: str = ""
    sign: str = ""
    sources: tuple[int | str, ...] = ()


class ModelWires(NamedTuple):
    """The nodes of each kind of layer in order, by (tower, kind), and the operations of each tower before, beside and
    after its layers (`TowerTrace.ends`)."""

    layers: dict[tuple[str, str], tuple[Junction, ...]]
    ends: dict[str, dict[str, list[TapeNode]]]


def wire_model(spec: Any) -> ModelWires:
    """Trace the connections in a model's layers. An untraceable layer is a chain of the parts that it lists."""
    found = ModelWires({}, {})
    shape, memory = PassShape(min(TOKENS, spec.max_seq_len)), None
    with taping("cpu") as tape:
        for where, tower in spec.towers().items():
            trace, begun = TowerTrace(tape, tower, where, shape), tape.operations
            try:
                with named_failures(f"{tower.axis}={tower.kind}"):
                    memory = trace.run(make_memory(tower, shape) if memory is None else memory, loops=True)
            except UnknownOperation:
                tape.unknown = None
            found.ends[where] = trace.ends
            for kind, block in tower.blocks.items():
                traced = trace.layers.get(kind)
                parts = list_boxes(block, tower.d_model)
                found.layers[where, kind] = (
                    _name_owners(_collapse(*traced, begun, parts), parts, tower.d_model) if traced else _chain(parts)
                )
    return found


def _chain(parts: Iterable[str]) -> tuple[Junction, ...]:
    return tuple(Junction(at, name, sources=(at - 1 if at else STREAM,)) for at, name in enumerate(parts))


def _find_owner(path: tuple[str, ...], parts: Collection[str]) -> str:
    """Return the part of an operation; "" for the layer itself, and for an operation that joins mixers of a part."""
    inner = ".".join(path[:2])
    return inner if inner in parts else "" if any(each.startswith(f"{path[0]}.") for each in parts) else path[0]


def _collapse(nodes: list[TapeNode], result: Any, begun: int, parts: Collection[str]) -> tuple[Junction, ...]:
    """Collapse a layer's operations to nodes: consecutive operations of one part, and joins between parts."""
    units: list[Junction] = []
    unit_of: dict[int, int | str] = {}  # operation → the unit, or what stands for it
    # Where a layer computes with a connection's own parts, factors are part of the connection.
    whole = all(_find_owner(node.path, parts) in ("", *parts) for node in nodes if node.path)
    for node in nodes:
        sources, owner = _list_sources(node, unit_of, begun), _find_owner(node.path, parts) if node.path else ""
        last = units[-1] if units else None
        if owner and last is not None and last.part == owner:
            more = [each for each in sources if each not in (last.number, *last.sources)]
            units[-1] = replace(last, sources=(*last.sources, *more))
            unit_of[node.index] = last.number
        elif sources and (owner or len(sources) > 1):
            sign = "" if owner else JOINS.get(node.name, "·")
            units.append(Junction(len(units), owner, sign, tuple(sources)))
            unit_of[node.index] = len(units) - 1
        elif sources and node.factor != 1.0 and whole:
            units.append(Junction(len(units), sign=say_factor(node.factor), sources=tuple(sources)))
            unit_of[node.index] = len(units) - 1
        else:  # a cast, a slice: what it reads stands for it
            unit_of[node.index] = sources[0] if sources else WEIGHT
    end = unit_of[result.node.index] if result.node is not None else STREAM
    return _renumber(_merge_joins(units, end), end)


def say_factor(factor: float) -> str:
    """Format a constant factor: `× 0.22`, or `÷ 8` and `÷ √2` where division is shorter."""
    whole = 1 / factor if factor else 0.0
    if math.isclose(whole, 2**0.5):
        return "÷ √2"
    short = len(f"{factor:.9g}") <= 5 or whole < 1.5 or not math.isclose(whole, round(whole))
    return f"× {factor:.4g}" if short else f"÷ {round(whole):,}"


def _name_owners(nodes: tuple[Junction, ...], parts: Mapping[str, Any], d_model: int) -> tuple[Junction, ...]:
    """Rename inner parts that a layer uses directly (a connection's projections) after the part that contains them.
    Nodes of one such part are merged if they have the same sources."""
    inner, seen = _list_inner(parts, d_model), Counter[str]()
    kept: list[Junction] = []
    number_of: dict[int, int] = {}
    made: dict[str, int] = {}  # the node of each part that is named here
    for node in nodes:
        owners = [name for name, own in inner if node.part in own] if node.part not in parts else []
        read = (number_of[each] if isinstance(each, int) else each for each in node.sources)
        sources = tuple(dict.fromkeys(read))
        joins = (at for each, at in made.items() if each in owners and set(sources) <= {at, *kept[at].sources})
        if (own := next(joins, None)) is not None:
            number_of[node.number] = own
            continue
        number_of[node.number] = len(kept)
        name = _choose_owner(node, nodes, owners, seen) if owners else node.part
        if owners:
            made[name] = len(kept)
        kept.append(Junction(len(kept), name, node.sign, sources))
    return tuple(kept)


def _choose_owner(node: Junction, nodes: tuple[Junction, ...], owners: list[str], seen: Counter[str]) -> str:
    """Choose among the parts that contain a node's inner part: a part that reads it soon after, or each in turn."""
    seen[node.part] += 1
    reached, read = {node.number}, []
    for each in nodes[node.number + 1 : node.number + 4]:
        if reached & set(each.sources):
            reached.add(each.number)
            read.append(each.part)
    turn = owners[(seen[node.part] - 1) % len(owners)]
    return next((part for part in read if part in owners), turn)


def _list_inner(parts: Mapping[str, Any], d_model: int) -> list[tuple[str, set[str]]]:
    """List the parts that are components, each with the names of its inner parts."""
    inner = (
        (name, part if isinstance(part, Sized) else Sized(part, d_model))
        for name, part in parts.items()
        if isinstance(part, Spec | Sized)
    )
    return [(name, set(each.spec.parts(each.d_model))) for name, each in inner]


def _list_sources(node: TapeNode, unit_of: dict[int, int | str], begun: int) -> list[int | str]:
    """List what an operation reads, without repetition: units, the stream, channels and an encoder's output, but no
    weights."""
    found: list[int | str] = []
    for source in node.sources:
        if source.node is not None:
            made = unit_of.get(source.node.index, "memory" if source.node.index <= begun else "pass")
            found += [] if made == WEIGHT else [made]
        elif source.leaf is not None and not source.leaf.held:
            found.append(STREAM if source.leaf.name == INPUT else source.leaf.name)
    return list(dict.fromkeys(found))


def _merge_joins(units: list[Junction], end: int | str) -> list[Junction]:
    """Merge a join into its only reader if that is a join of the same sign: a sum of three becomes one node."""
    readers: dict[int | str, list[int]] = {}
    for unit in units:
        for source in unit.sources:
            readers.setdefault(source, []).append(unit.number)
    merged: dict[int, Junction] = {}
    for unit in units:
        sources: list[int | str] = []
        for source in unit.sources:
            inner = merged.get(source) if isinstance(source, int) else None
            same = inner is not None and unit.sign and inner.sign == unit.sign and len(inner.sources) > 1
            if inner is not None and same and readers[source] == [unit.number] and source != end:
                del merged[inner.number]
                sources += inner.sources
            else:
                sources.append(source)
        merged[unit.number] = replace(unit, sources=tuple(dict.fromkeys(sources)))
    return list(merged.values())


def _renumber(units: list[Junction], end: int | str) -> tuple[Junction, ...]:
    """Keep the nodes on which the result depends, and number them in order."""
    by_number, kept, waiting = {unit.number: unit for unit in units}, set(), [end]
    while waiting:
        number = waiting.pop()
        if isinstance(number, int) and number not in kept:
            kept.add(number)
            waiting += by_number[number].sources
    numbers: dict[int | str, int] = {number: at for at, number in enumerate(sorted(kept))}
    return tuple(
        replace(by_number[old], number=new, sources=tuple(numbers.get(each, each) for each in by_number[old].sources))  # type: ignore[index]
        for old, new in numbers.items()
    )
