"""Find out what each field of a config does: in the reference, and as a draft reads it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.families.family import HARMLESS
from zoo.porting.reference import NO_FIELDS, Illegal, Maker, Reference
from zoo.porting.trial import measure_gap
from zoo.porting.values import list_other_values

NOTHING = 1e-6
"""Largest difference between outputs of a reference that a field has not changed."""


@dataclass(frozen=True, eq=False)
class Effect:
    """Another value of a field, and the reference that has it. `changes` says whether it computes something else."""

    name: str
    value: Any
    reference: Reference
    changes: bool


def list_effects(maker: Maker, reference: Reference, names: Iterable[str], most: int = 1) -> dict[str, list[Effect]]:
    """Set each of these fields to a few other values. One that the reference refuses is left out."""
    return {name: list(_try_values(maker, reference, name, most)) for name in names}


def list_fields(reference: Reference) -> list[str]:
    """The fields of a config that are not known to change no number."""
    return sorted(name for name in reference.config if name not in HARMLESS | NO_FIELDS)


@functools.cache
def _types(config_class: Any) -> dict[str, str]:
    return {each.name: str(each.type) for each in dataclasses.fields(config_class)}


def _try_values(maker: Maker, reference: Reference, name: str, most: int) -> Iterator[Effect]:
    now = reference.config[name]
    others = list_other_values(name, now, _types(maker.config_class).get(name, ""))
    tried = [value for value in others if value != now or type(value) is not type(now)]
    found = 0
    for value in tried:
        if found == most:
            return
        try:
            made = maker.make({**reference.config, name: value})
            changes = not _is_same(made.stages, reference.stages) or made.shapes != reference.shapes
        except Illegal:
            continue
        found += 1
        yield Effect(name, value, made, changes)


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(name in b and measure_gap(each, b[name]) <= NOTHING for name, each in a.items())
