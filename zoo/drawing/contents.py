"""Describe the content of a model's figure as plain data: towers, their layers by kind, and the parts of each layer.

Everything is read from the Spec: components and their fields, caches, and the wiring of layers. No kind of component is
named here, so a new kind is drawn without changes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.costs.rows import generates
from zoo.costs.setup import Setup
from zoo.drawing.ends import EndPiece, list_end_pieces
from zoo.drawing.facts import describe_fields, find_case, find_long_name, name_component, spell
from zoo.drawing.folding import Fold, fold_pattern, name_places
from zoo.drawing.shares import BoxPlace, Share, list_boxes, price_boxes
from zoo.drawing.wiring import Junction, ModelWires, wire_model
from zoo.model.attention.base import Attention
from zoo.spec import CROSS, EXPERTS, LOGITS, SHARED_EXPERT, TOKENS, Experts, Linear, Part, Sized, Spec, Tied, components
from zoo.spec import rows as walk_rows
from zoo.spec.parts import count_kinds
from zoo.units import format_count, format_si

NOTHING = Share()

READERS = {"position": "read in attention"}
"""Text that names the readers of a box outside the residual stream, by axis. Without an entry all layers read it."""

TITLES = {"embedding": "Embedding", "position": "{} position"}
"""Titles of boxes by axis, for axes whose component names are not clear on their own."""


@dataclass(frozen=True)
class ExpertCounts:
    """The experts of a mixture: their `count`, the `active` ones per token, and the `shared` ones that every token
    uses. A shared expert has `times` the weights of a routed one."""

    count: int
    active: float
    shared: int = 0
    times: float = 0.0

    def __str__(self) -> str:
        return f"{self.count:,} experts, {self.active:.3g} per token"


@dataclass(frozen=True)
class Element:
    """A part of a model that is drawn as a box. `color` is its colour in the palette; `rows` are (label, text). A mixer
    is `local` if its queries see only a window or a chunk."""

    name: str
    title: str
    about: str = ""
    color: str = "other"
    rows: tuple[tuple[str, str], ...] = ()
    experts: ExpertCounts | None = None
    kept: str = ""
    local: bool = False
    share: Share = NOTHING


@dataclass(frozen=True)
class LayerPlan:
    """A kind of layer: the number and indices of its layers, its junctions and elements. `stored` counts the layers
    with their own weights."""

    kind: str
    count: int
    places: str
    color: str
    junctions: tuple[Junction, ...]
    elements: Mapping[str, Element]
    stored: int

    @property
    def share(self) -> Share:
        return sum((each.share for each in self.elements.values()), Share())


@dataclass(frozen=True)
class TowerPlan:
    """A tower: elements before and after its layers, its kinds of layer, and its folded pattern. `beside` are inputs of
    the layers outside the residual stream, such as a bias on scores. If such an element reads the result of an element
    before the layers, `fed` maps the former's name to the latter's."""

    where: str
    title: str
    before: tuple[Element, ...]
    after: tuple[Element, ...]
    layers: tuple[LayerPlan, ...]
    pattern: tuple[str, ...]
    folds: tuple[Fold, ...]
    notes: tuple[str, ...] = ()
    reads_memory: bool = False
    beside: tuple[Element, ...] = ()
    fed: Mapping[str, str] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[Element, ...]:
        """All elements outside the layers."""
        return (*self.before, *self.beside, *self.after)

    def layer(self, kind: str) -> LayerPlan:
        return next(each for each in self.layers if each.kind == kind)


@dataclass(frozen=True)
class ModelPlan:
    """A model's figure as plain data: its towers, and the figures of the whole model."""

    title: str
    towers: tuple[TowerPlan, ...]
    figures: Mapping[str, Any]
    width: int
    vocabulary: int
    generates: bool

    def list_tiles(self) -> list[tuple[str, str]]:
        """List the headline figures, each as (number, label)."""
        params, cache = self.figures["params"], self.figures["kv_cache"]
        found = [(format_count(params["total"]), "parameters")]
        if params["active"] != params["total"]:
            found.append((format_count(params["active"]), "active per token"))
        found.append((" + ".join(str(len(tower.pattern)) for tower in self.towers), "layers"))
        found += [(f"{self.width:,}", "width"), (f"{self.vocabulary:,}", "vocabulary")]
        if self.generates:
            found.append((format_si(cache["bytes"], "B"), f"cache at {cache['tokens']:,} tokens"))
        return found


def plan_model(spec: Any, title: str, setup: Setup | None = None) -> ModelPlan:
    """Plan the figure of a model: its elements, and the cost of each under `setup`."""
    from zoo.costs.price import price

    setup = setup or Setup()
    shares, wires = price_boxes(spec, setup), wire_model(spec)
    towers = tuple(_plan_tower(where, tower, shares, wires) for where, tower in spec.towers().items())
    return ModelPlan(title, towers, price(spec, setup, ["params"]), spec.d_model, spec.vocab_size, generates(spec))


def _plan_tower(where: str, tower: Any, shares: Mapping[BoxPlace, Share], wires: ModelWires) -> TowerPlan:
    own = {path: share for (tower_of, kind, path), share in shares.items() if tower_of == where and kind is None}
    pieces = list_end_pieces(tower, wires.ends[where])
    ends = {
        side: tuple(element for piece in each if (element := _make_end(piece, tower, own)).title)
        for side, each in pieces.items()
    }
    return TowerPlan(
        where,
        type(tower).__name__,
        ends["before"],
        ends["after"],
        tuple(_plan_layer(where, kind, tower, shares, wires.layers) for kind in tower.blocks),
        tower.pattern,
        tuple(fold_pattern(tower.pattern)),
        _list_notes(tower),
        tower.reads_memory,
        tuple(replace(each, about=READERS.get(each.name, "read in layers")) for each in ends["beside"]),
        {each.path: each.reads for each in pieces["beside"] if each.reads},
    )


def _make_end(piece: EndPiece, tower: Any, shares: Mapping[str, Share]) -> Element:
    """Make the element of a piece outside a tower's layers. `shares` are keyed by path."""
    others = {f"{piece.path}.{each}" for each in piece.apart}
    own = (share for path, share in shares.items() if f"{path}.".startswith(f"{piece.path}.") and path not in others)
    made = make_element(piece.name or piece.path, piece.part, tower.d_model, sum(own, Share()), piece.apart)
    weights = _list_weights(piece.part) if piece.reads else []
    return replace(made, rows=(*made.rows, *weights, *([("", piece.said)] if piece.said else [])))


def _list_weights(part: Sized) -> list[tuple[str, str]]:
    """List the shapes of a component's own tables and projections: `project` `2,048 → 7,680`."""
    inner = ((name, each) for name, each in part.spec.parts(part.d_model).items() if isinstance(each, Part))
    shapes = ((name, each, each.shapes().get("weight", ())) for name, each in inner)
    return [
        (spell(name), f"{shape[1]:,} → {shape[0]:,}" if isinstance(each, Linear) else f"{shape[0]:,} × {shape[1]:,}")
        for name, each, shape in shapes
        if len(shape) == 2
    ]


def _list_notes(tower: Any) -> tuple[str, ...]:
    """List a tower's properties that no box shows: loops, shared weights, several residual streams."""
    notes = ["all layers of a kind share weights"] if tower.shared_layers else []
    if tower.served is not tower:
        notes.append("training also runs modules that predict further tokens, which stand in no box")
    for name, each in (("loop", tower.loop), ("streams", tower.streams)):
        if each is not None:
            rows = " · ".join(" ".join(filter(None, row)) for row in describe_fields(each))
            notes.append(f"{name}: {rows or each.kind}")
    return tuple(notes)


def _plan_layer(where: str, kind: str, tower: Any, shares: Mapping[Any, Share], wires: Mapping[Any, Any]) -> LayerPlan:
    boxes, nodes = list_boxes(tower.blocks[kind], tower.d_model), wires[where, kind]
    elements = {
        name: make_element(name, part, tower.d_model, shares.get((where, kind, name), Share()))
        for name, part in boxes.items()
    }
    count = count_kinds(tower.pattern)[kind]
    for name, part in boxes.items():
        if isinstance(part, Sized) and part.common:
            rows = (("", f"one set of weights for {count} layers"), *elements[name].rows)
            elements[name] = replace(elements[name], title=f"shared {elements[name].title}", rows=rows)
    if not tower.causal:
        elements = {name: _turn_both_ways(each) for name, each in elements.items()}
    nodes, elements = _join_copies(nodes, elements)
    mixers = [each for each in elements.values() if each.color in ("attention", "recurrent")]
    others = [each for each in elements.values() if each.color in ("ffn", "experts")]
    caching = [each for each in mixers if each.color == "attention"]
    first = (caching or mixers or others or list(elements.values()))[0]
    return LayerPlan(
        kind,
        count,
        name_places(tower.pattern, kind),
        first.color,
        nodes,
        elements,
        count_kinds(tower.stack.stored())[kind],
    )


def _turn_both_ways(element: Element) -> Element:
    """Turn an element into an encoder's: bidirectional attention, no cache."""
    rows = list(element.rows)
    if element.color == "attention":
        plain = rows.pop(0)[1] if rows and not rows[0][0] else ""
        rows.insert(0, ("", " · ".join(filter(None, ("bidirectional", plain)))))
    return replace(element, rows=tuple(rows), kept="")


def _join_copies(
    nodes: Sequence[Junction], elements: dict[str, Element]
) -> tuple[tuple[Junction, ...], dict[str, Element]]:
    """Join equal parts with equal inputs and equal readers into one box: three gates become `3 × …`."""
    alike: dict[Any, list[Junction]] = {}
    for node in nodes:
        readers = tuple(each.number for each in nodes if node.number in each.sources)
        element = elements.get(node.part)
        signature = (element.title, element.rows, element.experts) if element else node.number
        alike.setdefault((signature, node.sources, readers), []).append(node)
    first = {each.number: held[0].number for held in alike.values() for each in held}
    for held in (each for each in alike.values() if len(each) > 1):
        own = [elements[each.part] for each in held]
        share = sum((each.share for each in own), Share())
        elements[held[0].part] = replace(own[0], title=f"{len(own)} × {own[0].title}", share=share)
        for each in held[1:]:
            del elements[each.part]
    kept = [held[0].number for held in alike.values()]
    numbers = {old: new for new, old in enumerate(sorted(kept))}
    renamed = {number: numbers[to] for number, to in first.items()}
    joined = []
    for node in (each for each in nodes if each.number in numbers):
        sources = dict.fromkeys(renamed.get(each, each) if isinstance(each, int) else each for each in node.sources)
        joined.append(replace(node, number=numbers[node.number], sources=tuple(sources)))
    return tuple(joined), elements


def make_element(name: str, part: Any, d_model: int, share: Share, but: Collection[str] = ()) -> Element:
    """Make the element of a part: a component with its fields not in `but`, or a bare weight with its shape."""
    spec, role = (part.spec, part.role) if isinstance(part, Sized) else (part, "")
    width = part.d_model if isinstance(part, Sized) else d_model
    if not isinstance(spec, Spec):
        return _make_weight(name, spec, share)
    if not spec.kind or spec.kind == "none":
        return Element(name, "")
    experts = count_experts(spec, width)
    color, mixer = find_color(spec, bool(experts)), spec
    title, about = TITLES.get(spec.axis, "{}").format(name_component(spec)), find_long_name(spec)
    if spec.axis == "attention" and (case := find_case(spec)) and case != about:
        title, about = case, ""
    if color == "other" and (held := [each for _, each, _ in components(spec, width) if each.axis == "attention"]):
        mixer = held[0]  # a block inside the layer is what it holds
        color, title = find_color(mixer, False), _name_block(spec)
    return Element(
        name,
        title,
        "cross-attention" if role == CROSS else about if color != "table" else "",
        color,
        () if color == "norm" else (*describe_fields(spec, but), *_list_tables(spec, width)),
        experts,
        say_kept(mixer),
        isinstance(mixer, Attention) and bool(mixer.sight.window or mixer.sight.chunk),
        share,
    )


def count_experts(spec: Spec, width: int) -> ExpertCounts | None:
    """Count the experts of a component; None if it has none."""
    parts = [(row.roles, row.part) for row in walk_rows(spec, width) if row.part is not None]
    routed = [part for roles, part in parts if isinstance(part, Experts) and part.active_count and EXPERTS in roles]
    if not routed:
        return None
    shared = [part for roles, part in parts if SHARED_EXPERT in roles]
    copies = max((part.count if isinstance(part, Experts) else 1 for part in shared), default=0)
    one = sum(part.of.params for part in routed)
    times = sum(part.params for part in shared) / (copies * one) if copies else 0.0
    return ExpertCounts(routed[0].count, routed[0].expected_count, copies, times)


def _name_block(spec: Spec) -> str:
    """Return the name of a block inside a layer, from the components that it holds: `attention + FFN`."""
    held = (getattr(spec, field.name) for field in spec.fields())
    return " + ".join(spell(each.axis) for each in held if isinstance(each, Spec) and each.axis in ("attention", "ffn"))


def _list_tables(spec: Spec, width: int) -> list[tuple[str, str]]:
    """List the shape of an embedding's table or of a head's product over the vocabulary, and whether the weight is
    tied."""
    own = (row.part for row in walk_rows(spec, width) if row.part is not None and row.part.role in (TOKENS, LOGITS))
    sizes = [
        " × ".join(f"{size:,}" for size in (each.of if isinstance(each, Tied) else each).shapes().get("weight", ()))
        + (" · tied" if isinstance(each, Tied) else "")
        for each in own
    ]
    return [("", each) for each in sizes if each]


def _make_weight(name: str, part: Any, share: Share) -> Element:
    """Make the element of a bare weight: its kind and shape."""
    shapes = part.shapes() if isinstance(part, Part) else {}
    size = " × ".join(f"{each:,}" for each in reversed(next(iter(shapes.values()), ())))
    return Element(
        name, spell(name.rpartition(".")[2]), "", "other", (("", f"{type(part).__name__} {size}".strip()),), share=share
    )


def find_color(spec: Spec, has_experts: bool) -> str:
    """Return the palette colour of a component: by its axis, and for a mixer by what it caches."""
    if spec.axis == "attention":
        return "recurrent" if spec.state() and not spec.cache() else "attention"
    if spec.axis == "ffn":
        return "experts" if has_experts else "ffn"
    return {"norm": "norm", "embedding": "table", "head": "table", "position": "table"}.get(spec.axis, "other")


def say_kept(spec: Spec) -> str:
    """Describe a component's cache during generation: values per token, and values of its state."""
    cached, state = (sum(map(math.prod, kept.values())) for kept in (spec.cache(), spec.state()))
    rate = spec.sight.rate if isinstance(spec, Attention) else 1
    said = [f"caches {cached:,} values {'per token' if rate == 1 else f'every {rate} tokens'}"] if cached else []
    return " · ".join([*said, *([f"state of {state:,} values"] if state else [])])
