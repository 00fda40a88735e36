"""Group kinds of layer with the same structure. A group is one panel, which states the differences between kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zoo.drawing.boxes import BETWEEN
from zoo.drawing.contents import Element, LayerPlan
from zoo.drawing.shares import Share
from zoo.drawing.wiring import Junction


@dataclass(frozen=True)
class AlikeLayers:
    """Kinds of layer with the same structure: their junctions, and elements that state what the kinds share and how
    they differ."""

    layers: tuple[LayerPlan, ...]
    junctions: tuple[Junction, ...]
    elements: Mapping[str, Element]

    @property
    def share(self) -> Share:
        return sum((each.share for each in self.layers), Share())


def group_layers(layers: Sequence[LayerPlan]) -> list[AlikeLayers]:
    """Group layers with equal junctions and components, in order of first appearance."""
    found: dict[object, list[LayerPlan]] = {}
    for layer in layers:
        found.setdefault(_describe_build(layer), []).append(layer)
    return [AlikeLayers(tuple(each), each[0].junctions, _merge(each)) for each in found.values()]


def _describe_build(layer: LayerPlan) -> object:
    wires = tuple(
        (node.part, node.sign, tuple(each for each in node.sources if isinstance(each, int)))
        for node in layer.junctions
    )
    return wires, tuple((name, each.title, each.experts) for name, each in layer.elements.items())


def _merge(layers: Sequence[LayerPlan]) -> dict[str, Element]:
    return {
        name: _merge_elements([(layer.kind, layer.elements[name]) for layer in layers]) for name in layers[0].elements
    }


def _merge_elements(named: Sequence[tuple[str, Element]]) -> Element:
    """Merge an element of several kinds of layer: rows of common facts, then one row for each kind that differs."""
    first = named[0][1]
    share = sum((each.share for _, each in named), Share())
    if all(each.rows == first.rows and each.kept == first.kept for _, each in named):
        return replace(first, share=share)
    alike = all(each.kept == first.kept for _, each in named)
    facts = {kind: list_facts(each, keeps=not alike) for kind, each in named}
    common = [fact for fact in facts[named[0][0]] if all(fact in own for own in facts.values())]
    others: dict[str, list[str]] = {}
    for kind, own in facts.items():
        said = BETWEEN.join(" ".join(filter(None, fact)) for fact in own if fact not in common)
        if said:
            others.setdefault(said, []).append(kind)
    rows = [*_join(common), *((", ".join(kinds), said) for said, kinds in others.items())]
    return replace(first, rows=tuple(rows), kept=first.kept if alike else "", share=share)


def list_facts(element: Element, keeps: bool) -> list[tuple[str, str]]:
    """List an element's facts as (label, text): each fact of the unlabelled row, each labelled row as a whole and, with
    `keeps`, the cache."""
    found = []
    for label, text in (*element.rows, *([("", element.kept)] if keeps else [])):
        found += [("", fact) for fact in text.split(BETWEEN) if fact] if not label else [(label, text)]
    return found


def _join(facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    plain = BETWEEN.join(text for label, text in facts if not label)
    return [*([("", plain)] if plain else []), *(fact for fact in facts if fact[0])]
