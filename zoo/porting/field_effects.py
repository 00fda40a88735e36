"""Find which fields of a config change the reference's outputs, by setting each to other values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.families.family import HARMLESS
from zoo.porting.reference_model import NO_FIELDS, Illegal, Maker, Reference
from zoo.porting.trial import measure_gap
from zoo.porting.values import list_other_values

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NOTHING = 1e-6
"""Largest difference of outputs, as `measure_gap` has it, that counts as unchanged."""


@dataclass(frozen=True, eq=False)
class Effect:
    """Another value of a field, and the reference with this value. `changes` says whether outputs or shapes differ."""

    name: str
    value: Any
    reference: Reference
    changes: bool


def list_effects(maker: Maker, reference: Reference, names: Iterable[str], most: int = 1) -> dict[str, list[Effect]]:
    """Set each field to at most `most` other values that the reference accepts. Returns the effects by field."""
    return {name: list(_try_values(maker, reference, name, most)) for name in names}


def list_fields(reference: Reference) -> list[str]:
    """List the fields of a config except those known not to change any output."""
    return sorted(name for name in reference.config if name not in HARMLESS | NO_FIELDS)


@functools.cache
def _types(config_class: type[PreTrainedConfig]) -> dict[str, str]:
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
