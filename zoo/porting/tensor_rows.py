"""Find rows `ours: theirs | steps` for tensors that no row of the draft covers, by their shapes, by the layers that
have them, and by their names in other families."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from zoo.checkpoint.conversion import Entry
from zoo.checkpoint.mapping import Rule
from zoo.families.expression import is_expression
from zoo.families.family import read_family
from zoo.porting.draft import Draft
from zoo.porting.nearest import list_others, name_pattern
from zoo.porting.reference_model import Reference
from zoo.porting.trial import TrialOutcome
from zoo.spec import Experts, tensors

LEAF = re.compile(r"\.(weight|bias)$")
ENOUGH = 0.4
"""Minimum similarity of names for a row, if the shapes agree, too."""


Places = Mapping[tuple[str, str], tuple[int, ...]]
"""Shapes of tensors whose names differ only in the indices of layer and expert, by layer and leaf ("3", ".weight")."""


def place_tensors(draft: Draft, outcome: TrialOutcome, reference: Reference) -> dict[str, str]:
    """Find rows for the tensors that an outcome has not placed, greedily by similarity of names."""
    ours = _group_ours(outcome)
    theirs = _group({name: reference.shapes[name] for name in outcome.strange}, reference.prefix)
    scored = sorted(
        (
            (_liken(draft.model_type, row, pattern), len(names), row, steps, names, pattern)
            for row, steps, names in _list_forms(draft.model_type, ours)
            for pattern, places in theirs.items()
            if _fits(outcome, steps, {name: ours[name] for name in names}, pattern, places)
        ),
        key=lambda each: (-each[0], -each[1], each[2]),
    )
    found: dict[str, str] = {}
    taken: set[str] = set()
    for score, _, row, steps, names, pattern in scored:
        if score >= ENOUGH and not taken & {*names, pattern}:
            taken |= {*names, pattern}
            found[row] = f"{pattern} | {steps}" if steps else pattern
    return found


def _group_ours(outcome: TrialOutcome) -> dict[str, Places]:
    """Group the model's tensors that have no row, or a row for a tensor that the file lacks."""
    wanted = {*outcome.lost, *(name for names in outcome.missing.values() for name in names)}
    shapes = {name: part.shapes()[leaf] for name, part, leaf in tensors(outcome.spec, outcome.spec.d_model)}
    return _group({name: shapes[name] for name in wanted if name in shapes}, "")


def _group(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Places]:
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        layer = re.search(r"\.(\d+)(?=\.|$)", name)
        leaf = LEAF.search(name)
        place = (layer[1] if layer else "", leaf[0] if leaf else "")
        found.setdefault(name_pattern(name, prefix), {})[place] = shape
    return found


def _list_forms(model_type: str, ours: Mapping[str, Places]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield candidate rows (our names, steps, list of our names): each tensor alone, and several with another family's
    steps (fused, transposed, …)."""
    yield from ((name, "", [name]) for name in ours)
    for row, steps in _known_forms(model_type):
        names = list(Rule.parse(row, "").ours)
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
    """List every row of every other family: (ours, theirs, steps)."""
    return tuple(
        (ours, theirs.partition("|")[0].strip(), theirs.partition("|")[2].strip())
        for name in list_others(model_type)
        for ours, theirs in read_family(name).keys.items()
        if theirs is not None and not is_expression(theirs)
    )


def _fits(outcome: TrialOutcome, steps: str, ours: Mapping[str, Places], pattern: str, theirs: Places) -> bool:
    """Whether the reference's tensors can be converted to the model's: the layers and the converted shapes agree."""
    if any(places.keys() != theirs.keys() for places in ours.values()):
        return False
    stacked = "@" in pattern
    rule = Rule.parse(" ".join(ours), f"x | {steps}" if steps else "x")
    row, places = next(iter(ours.items()))
    layer, leaf = next(iter(places))
    first = row.replace("#", layer) + leaf
    parts = tensors(outcome.spec, outcome.spec.d_model)
    experts = any(isinstance(part, Experts) for name, part, _ in parts if name == first)
    for place, shape in theirs.items():
        shapes = tuple(places[place] for places in ours.values())
        names = tuple("x" for _ in range(shapes[0][0])) if stacked else ("x",)
        try:
            made = tuple(
                step(0 if number is None else int(number.value(outcome.body.fields))) for step, number in rule.steps
            )
            entry = Entry(tuple(ours), names, shapes, made, stacked, experts)
            if next(each for _, each in entry.shapes_of_theirs()) != shape:
                return False
        except Exception:  # the step does not fit these shapes
            return False
    return True


@functools.cache
def _names_of(model_type: str, ours: str) -> tuple[str, ...]:
    plain = re.sub(r"\(\w+\)", "", ours)
    return tuple({theirs for row, theirs, _ in _known_rows(model_type) if re.sub(r"\(\w+\)", "", row) == plain})


@functools.cache
def _liken(model_type: str, ours: str, theirs: str) -> float:
    """Measure a name's similarity (0 to 1) to the names of the model's tensor `ours` in the files of other families."""
    known = [*_names_of(model_type, ours), ours]
    return max(_compare(each, theirs) for each in known)


def _compare(a: str, b: str) -> float:
    """Measure the similarity of two names, 0 to 1; the last word counts most."""
    if a == b:
        return 1.0
    last, other = (each.rpartition(".")[2].lstrip("~") for each in (a, b))
    return 0.7 * SequenceMatcher(None, last, other).ratio() + 0.25 * SequenceMatcher(None, a, b).ratio()
