"""Place tensors: find the rows `ours: theirs | steps` for tensors whose names no row of the draft has, by their shapes,
by the layers that have them, and by what other families call them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from zoo.checkpoint.entries import Entry
from zoo.checkpoint.mapping import Rule
from zoo.families.expression import is_expression
from zoo.families.family import read_family
from zoo.porting.draft import Draft
from zoo.porting.nearest import list_others, name_pattern
from zoo.porting.reference import Reference
from zoo.porting.trial import Outcome
from zoo.spec import Experts, tensors

LEAF = re.compile(r"\.(weight|bias)$")
ENOUGH = 0.4
"""Likeness of names from which a row is placed, where the shapes agree too."""


@dataclass(frozen=True)
class Group:
    """Tensors of one name but for the index of the layer and of the expert: its pattern, and a shape by layer and
    leaf."""

    pattern: str
    shapes: Mapping[tuple[str, str], tuple[int, ...]]

    @property
    def places(self) -> frozenset[tuple[str, str]]:
        return frozenset(self.shapes)


def place_tensors(draft: Draft, outcome: Outcome, reference: Reference) -> dict[str, str]:
    """Find rows for the tensors that an outcome has not placed, the likeliest names first."""
    ours, theirs = _group_ours(outcome), _group_theirs(outcome, reference)
    scored = sorted(
        (
            (_liken(draft.model_type, row, group.pattern), len(names), row, steps, names, group)
            for row, steps, names in _list_forms(draft.model_type, ours)
            for group in theirs.values()
            if _fits(outcome, steps, [ours[name] for name in names], group)
        ),
        key=lambda each: (-each[0], -each[1], each[2]),
    )
    found: dict[str, str] = {}
    taken: set[str] = set()
    for score, _, row, steps, names, group in scored:
        if score >= ENOUGH and not taken & {*names, group.pattern}:
            taken |= {*names, group.pattern}
            found[row] = f"{group.pattern} | {steps}" if steps else group.pattern
    return found


def _group_ours(outcome: Outcome) -> dict[str, Group]:
    """Our tensors that have no row, or a row that asks for a tensor which is not there."""
    wanted = {*outcome.lost, *(name for names in outcome.missing.values() for name in names)}
    shapes = {name: part.shapes()[leaf] for name, part, leaf in tensors(outcome.spec, outcome.spec.d_model)}
    return _group({name: shapes[name] for name in wanted if name in shapes}, "")


def _group_theirs(outcome: Outcome, reference: Reference) -> dict[str, Group]:
    return _group({name: reference.shapes[name] for name in outcome.strange}, reference.prefix)


def _group(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Group]:
    found: dict[str, dict[tuple[str, str], tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer = re.search(r"\.(\d+)(?=\.|$)", name)
        leaf = LEAF.search(name)
        place = (layer[1] if layer else "", leaf[0] if leaf else "")
        found.setdefault(name_pattern(name, prefix), {})[place] = shape
    return {pattern: Group(pattern, places) for pattern, places in found.items()}


def _list_forms(model_type: str, ours: Mapping[str, Group]) -> Iterator[tuple[str, str, list[str]]]:
    """Rows that could hold these tensors of ours: each alone, and as the families fuse, turn and stack them."""
    yield from ((name, "", [name]) for name in ours)
    for row, steps in _known_forms(model_type):
        names = [each for each in Rule.parse(row, "").ours]
        if steps is not None and all(name in ours for name in names):
            yield row, steps, names


@functools.cache
def _known_forms(model_type: str) -> tuple[tuple[str, str], ...]:
    found = {
        (re.sub(r"\(\w+\)", "", ours), steps.strip())
        for ours, _, steps in _known_rows(model_type)
        if steps.strip() or "{" in ours
    }
    return tuple(sorted(each for each in found if "?" not in each[0]))


@functools.cache
def _known_rows(model_type: str) -> tuple[tuple[str, str, str], ...]:
    """Every row of every other family: ours, theirs, steps."""
    return tuple(
        (ours, theirs.partition("|")[0].strip(), theirs.partition("|")[2].strip())
        for name in list_others(model_type)
        for ours, theirs in read_family(name).keys.items()
        if theirs is not None and not is_expression(theirs)
    )


def _fits(outcome: Outcome, steps: str, ours: list[Group], theirs: Group) -> bool:
    """Whether tensors of theirs can hold these of ours: they are in the same layers, and the shapes agree."""
    if any(group.places != theirs.places for group in ours):
        return False
    stacked = "@" in theirs.pattern
    rule = Rule.parse(" ".join(group.pattern for group in ours), f"x | {steps}" if steps else "x")
    experts = any(isinstance(part, Experts) for name, part, _ in _first(outcome, ours[0]))
    for place, shape in theirs.shapes.items():
        shapes = tuple(group.shapes[place] for group in ours)
        names = tuple("x" for _ in range(shapes[0][0])) if stacked else ("x",)
        try:
            made = tuple(
                step(0 if number is None else int(number.value(outcome.body.fields))) for step, number in rule.steps
            )
            entry = Entry(tuple(group.pattern for group in ours), names, shapes, made, stacked, experts)
            if next(each for _, each in entry.shapes_of_theirs()) != shape:
                return False
        except Exception:  # a step that these shapes do not allow
            return False
    return True


def _first(outcome: Outcome, group: Group) -> Iterator[tuple[str, Any, str]]:
    layer, leaf = next(iter(group.shapes))
    name = group.pattern.replace("#", layer) + leaf
    yield from (each for each in tensors(outcome.spec, outcome.spec.d_model) if each[0] == name)


@functools.cache
def _names_of(model_type: str, ours: str) -> tuple[str, ...]:
    """The names that families give to a tensor of ours."""
    plain = re.sub(r"\(\w+\)", "", ours)
    return tuple({theirs for row, theirs, _ in _known_rows(model_type) if re.sub(r"\(\w+\)", "", row) == plain})


@functools.cache
def _liken(model_type: str, ours: str, theirs: str) -> float:
    """How like a name is to those that the families have for a tensor of ours: 1 for one of them."""
    known = [*_names_of(model_type, ours), ours]
    return max(_compare(each, theirs) for each in known)


def _compare(a: str, b: str) -> float:
    """Likeness of two names; the last word counts most."""
    if a == b:
        return 1.0
    last, other = (each.rpartition(".")[2].lstrip("~") for each in (a, b))
    return 0.7 * SequenceMatcher(None, last, other).ratio() + 0.25 * SequenceMatcher(None, a, b).ratio()
