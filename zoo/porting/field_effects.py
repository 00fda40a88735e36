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

    value: Any
    reference: Reference
    changes: bool


def find_effects(maker: Maker, reference: Reference, names: Iterable[str]) -> dict[str, Effect | None]:
    """Set each field to another value that the reference accepts. None for a field of which it accepts no other."""
    return {name: next(_try_values(maker, reference, name), None) for name in names}


def list_fields(reference: Reference) -> list[str]:
    """List the fields of a config except those known not to change any output."""
    return sorted(name for name in reference.config if name not in HARMLESS | NO_FIELDS)


@functools.cache
def _types(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    return {each.name: str(each.type) for each in dataclasses.fields(config_class)}


def _try_values(maker: Maker, reference: Reference, name: str) -> Iterator[Effect]:
    now = reference.config[name]
    for value in list_other_values(name, now, _types(maker.config_class).get(name, "")):
        if value == now and type(value) is type(now):
            continue
        try:
            made = maker.make({**reference.config, name: value})
            yield Effect(value, made, not _is_same(made.stages, reference.stages) or made.shapes != reference.shapes)
        except Illegal:
            continue


def _is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(name in b and measure_gap(each, b[name]) <= NOTHING for name, each in a.items())
