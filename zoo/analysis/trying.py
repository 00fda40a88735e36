"""Try a field: set it to another value in a small model; give the line of YAML, and the figures that change."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from zoo.analysis.axes import load_small
from zoo.analysis.uses import read_uses
from zoo.compose.catalogue import read_bodies
from zoo.compose.targets import Composer, spec_of_composed
from zoo.costs.price import price
from zoo.costs.rows import Priced
from zoo.errors import ConfigError
from zoo.grammar.dialect import list_files
from zoo.grammar.vocabulary import AxisChoice, list_axes, list_nodes, list_words, write_value
from zoo.paths import read_conf
from zoo.spec import Node, Spec
from zoo.spec.fields import SpecField

MOST_TRIED, MOST_PLACES, MOST_OFF = 6, 2, 4
"""MOST_TRIED values in MOST_PLACES models are tried before a field is reported as refused; a model without an optional
component is searched among MOST_OFF models."""

TINY = {"decoder": "llama-tiny", "encoder": "bert-tiny", "encoder_decoder": "t5-tiny"}
"""A small model of each topology."""

FIGURES = {
    "parameters": "params.total",
    "used by a token": "params.active",
    "cache a token": "kv_cache.bytes_per_token",
    "recurrent state": "kv_cache.state_bytes",
    "FLOPs a token, forward": "flops.forward",
    "FLOPs of decoding one": "flops.decode",
}
"""Figures of `zoo stats` that a field may change."""


@dataclasses.dataclass(frozen=True)
class FieldExample:
    """A field set to another value in a model: as a `line` of a file and as an `override` of the command line.
    `figures` are the figures that change, before and after; `refusal` is the reason if no other value is accepted."""

    target: str
    overrides: tuple[str, ...] = ()
    line: str = ""
    override: str = ""
    figures: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    refusal: str = ""

    @property
    def command(self) -> str:
        return shlex.join(["zoo", "stats", self.target, *self.overrides, self.override])


def try_field(choice: AxisChoice, field: SpecField, common: Sequence[Any]) -> FieldExample | None:
    """Try values of a field in small models: first the `common` ones, then others of its type. Of the first model that
    accepts any, return the first value that changes a figure, or if none does, the first accepted value. If no model
    accepts a value, return an example with a `refusal`; if no model can have the choice, None."""
    refused: FieldExample | None = None
    for target, overrides, path in _choose_places(choice, field):
        found = _try_in(choice, field, common, target, overrides, path)
        if found.line:
            return found
        refused = refused or found
    return refused


def _choose_places(choice: AxisChoice, field: SpecField) -> list[tuple[str, list[str], str]]:
    """Choose the models in which to try a field. If the field holds an optional component, a model without the
    component comes first, to add one."""
    kinds = field.schema.get("anyOf", ())
    if {"type": "null"} not in kinds or not any("$ref" in each for each in kinds):
        return list(itertools.islice(_find_places(choice), MOST_PLACES))
    places = list(itertools.islice(_find_places(choice), MOST_OFF))

    def lacks(place: tuple[str, list[str], str]) -> bool:
        spec = spec_of_composed(Composer(place[0]).compose(place[1]))
        return all(each is None for each in _read_values(spec, choice.spec, field.name))

    without = next(filter(lacks, places), None)
    return sorted(places, key=lambda place: place is not without)[:MOST_PLACES]


def _try_in(
    choice: AxisChoice, field: SpecField, common: Sequence[Any], target: str, overrides: list[str], path: str
) -> FieldExample:
    composer = Composer(target)
    base = spec_of_composed(composer.compose(overrides))
    before = _read_values(base, choice.spec, field.name)
    refusal, idle = "", None
    for value in list(_list_values(field, before[0] if before else None, common))[:MOST_TRIED]:
        for line, override in _write_lines(choice, field.name, value, path):
            try:
                spec = spec_of_composed(composer.compose([*overrides, override]))
            except ConfigError as error:
                refusal = refusal or error.faults[0]
                continue
            if _read_values(spec, choice.spec, field.name) != before:
                found = FieldExample(target, tuple(overrides), line, override, _compare(base, spec))
                if found.figures:
                    return found
                idle = idle or found  # changes no figure, such as a window as long as the context
                break
    return idle or FieldExample(target, tuple(overrides), refusal=refusal or "no other value is taken")


WITHIN = {"rope_scaling": "position.scaling"}
"""The place of an axis' choices in a model, for axes that are not keys of a model."""
LOOKED_UP = {"rope_factor": "rope_factor=4", "original_max_seq_len": "original_max_seq_len=64"}
"""Keys of a model that choices of the axes in WITHIN may look up, each with an override that states it."""


def _find_places(choice: AxisChoice) -> Iterator[tuple[str, list[str], str]]:
    """Find the smallest packaged models with a choice, each with the choice's path; then a tiny model to which the
    choice is added."""
    if choice.axis == "topology":
        return (yield TINY[choice.word], [], "")
    bodies, uses = read_bodies(), read_uses()[0]
    sizes = {name: body.get("about", {}).get("params", 0) for name, body in bodies.items()}
    for name in sorted(uses, key=lambda name: (sizes[name], name)):
        for use in uses[name]:
            if (
                use.spec is choice.spec
                and (choice.owner is not None or use.axis == choice.axis)
                and choice.word in use.words[:1]
            ):
                yield name, [], use.path
                break
    if choice.owner is not None:
        yield from ((name, made, f"{path}.{choice.word}") for name, made, path in _find_places(choice.owner))
    elif (place := WITHIN.get(choice.axis)) is not None:
        body = str(read_conf(f"{choice.axis}/{choice.word}"))
        made = [f"{place}={choice.word}", *(each for key, each in LOOKED_UP.items() if key in body)]
        try:
            spec_of_composed(Composer("llama-tiny").compose(made))
        except ConfigError:  # longrope needs a number for each pair of channels
            return
        yield "llama-tiny", made, place
    elif choice.word in list_files(choice.axis):
        target, overrides, _ = load_small(choice.axis, choice.word)
        yield target, overrides, choice.axis


def _read_values(spec: Spec, kind: type[Spec], name: str) -> list[Any]:
    return [getattr(each, name) for each in _walk_fields(spec) if type(each) is kind]


def _walk_fields(node: object) -> Iterator[Spec]:
    if isinstance(node, Spec):
        yield node
        for field in node.fields():
            yield from _walk_fields(getattr(node, field.name))
    elif isinstance(node, Mapping):
        for each in node.values():
            yield from _walk_fields(each)


def _list_values(field: SpecField, now: object, common: Sequence[Any]) -> Iterator[Any]:
    """List values that a field may take, without its present value."""
    seen = [now]
    for value in [*common, *_list_by_type(field.schema, None if isinstance(now, Spec) else now)]:
        if not any(value == each and type(value) is type(each) for each in seen):
            seen.append(value)
            yield value


def _list_by_type(schema: Mapping[str, Any], now: Any) -> Iterator[Any]:
    if "anyOf" in schema:
        optional = {"type": "null"} in schema["anyOf"]
        for each in schema["anyOf"]:
            if each != {"type": "null"}:
                yield from [True] if optional and _has_usual(each) else []
                yield from _list_by_type(each, now)
    elif "$ref" in schema:
        axis = schema["$ref"].rpartition("/")[2]
        yield from list_words(axis)[:MOST_TRIED] if axis in list_axes() else _fill_node(list_nodes()[axis])
    elif "enum" in schema:
        yield from schema["enum"]
    elif schema["type"] == "boolean":
        yield from (True, False)
    elif schema["type"] == "integer":
        usual = isinstance(now, int) and not isinstance(now, bool) and now
        yield from [2 * now, now // 2, now + 1] if usual else [2, 4, 8, 1]
    elif schema["type"] == "number":
        usual = isinstance(now, int | float) and not isinstance(now, bool) and now
        yield from [2.0 * now, now / 2] if usual else [0.5, 1.0, 2.0, -1.0]


def _has_usual(schema: Mapping[str, Any]) -> bool:
    """Whether `true` is accepted for a component (its usual choice). It is not for a node without a main field."""
    node = list_nodes().get(schema.get("$ref", "").rpartition("/")[2])
    return "$ref" in schema and (node is None or bool(node.word))


def _fill_node(base: type[Node]) -> Iterator[dict[str, Any]]:
    """List mappings with values for the required fields of a node."""
    fields = AxisChoice("", base.axis, base, {}, "").fields
    needed = {
        name: [64] if name.endswith("width") else list(_list_by_type(each.schema, None))[:MOST_TRIED]
        for name, each in fields.items()
        if each.is_required
    }
    every = itertools.product(*needed.values()) if needed else ()
    for values in sorted(every, key=lambda values: len(set(values)) < len(values)):  # equal values may change nothing
        yield dict(zip(needed, values, strict=True))


def _write_lines(choice: AxisChoice, name: str, value: object, path: str) -> Iterator[tuple[str, str]]:
    """Write a field's value as a line of a file and as an override: first by the model's key that fills the field, if
    there is one, then at the field's own path."""
    text = write_value(value)
    if (key := choice.find_key(name)) is not None:
        yield f"{key}: {text}", f"{key}={text}"
    if choice.axis == "topology":
        return (yield f"{name}: {text}", f"{name}={text}")
    node: Any = {**({"kind": choice.word} if choice.owner is None else {}), name: value}
    *above, last = path.split(".")
    for part in reversed([*above[1:], last] if above else []):
        node = {part: node}
    line = f"{above[0] if above else last}: {write_value(node)}"
    yield line, f"{path}.{name}={text}"
    if choice.owner is not None:  # for a node whose place holds the model's own component
        yield line, f"{path}={{{name}: {text}}}"


def _compare(base: Priced, other: Priced) -> dict[str, tuple[float, float]]:
    """List the figures of two models that differ."""
    first, second = (price(spec, parts=("params", "flops", "kv_cache")) for spec in (base, other))
    found = {}
    for label, path in FIGURES.items():
        part, _, name = path.partition(".")
        pair = (first[part].get(name) or 0, second[part].get(name) or 0)
        if pair[0] != pair[1]:
            found[label] = pair
    return found


def read_common(values: Iterable[str]) -> list[Any]:
    """Parse the values of packaged models, most frequent first, as YAML; interpolations are left out."""
    return [yaml.safe_load(each) for each in values if "${" not in each]
