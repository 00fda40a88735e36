"""List the choices of the playground's form, from the grammar: axes with their choices, fields, keys and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.analysis.grammar_names import key_sentence, list_keys
from zoo.compose.catalogue import read_models
from zoo.costs.setup import CHOICES
from zoo.grammar.dialect import list_slots
from zoo.grammar.keys import BASES, STRUCTURE
from zoo.grammar.vocabulary import AxisChoice, describe_axis, list_axes, list_filled, read_choices

SETUP = ("context", "batch", "dtype", "cache_dtype", "engine", "optimizer", "precision", "recompute")
"""Fields of the set-up (`zoo.costs.Setup`) in the form."""


def list_form() -> dict[str, Any]:
    """Return the form as plain data: `models`, `axes`, `fields` by axis and kind, `keys`, and the `setup`."""
    axes = [axis for axis in dict.fromkeys([*BASES, *list_slots()]) if axis in list_axes()]
    return {
        "models": [{"name": each["name"], "title": each["title"], "note": each["note"]} for each in read_models()],
        "axes": {axis: {"what": describe_axis(axis), "choices": _list_choices(axis)} for axis in axes},
        "fields": {f"{axis}.{kind}": [*_list_fields(each)] for axis in axes for kind, each in _pick_kinds(axis)},
        "keys": {key: _describe_key(key) for key in sorted(list_keys() - set(STRUCTURE) | {"n_layers"})},
        "setup": {name: list(CHOICES.get(name, ())) for name in SETUP},
    }


def _list_choices(axis: str) -> dict[str, dict[str, str]]:
    return {
        word: {"what": choice.what, "source": choice.paper, "kind": choice.spec.kind}
        for word, choice in read_choices(axis).items()
    }


def _pick_kinds(axis: str) -> Iterator[tuple[str, AxisChoice]]:
    """Yield, for each kind of an axis, the choice with the kind's name, or else the first choice of that kind."""
    found: dict[str, AxisChoice] = {}
    for word, choice in read_choices(axis).items():
        if choice.spec.kind not in found or word == choice.spec.kind:
            found[choice.spec.kind] = choice
    yield from found.items()


def _list_fields(choice: AxisChoice, above: str = "") -> Iterator[dict[str, Any]]:
    """Yield the fields of a choice. The fields of a node follow the node, as `gate.over`."""
    for field in choice.fields.values():
        options, free = list_options(field.schema)
        shown = {"name": f"{above}{field.name}", "what": field.sentence, "default": choice.describe_default(field.name)}
        yield shown | ({"options": options} if options else {}) | ({"free": True} if free else {})
        if (node := choice.open_node(field.name)) is not None:
            yield from _list_fields(node, f"{above}{field.name}.")


def list_options(schema: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """Return the values in a field's schema, and whether other values, such as numbers, are allowed."""
    if "anyOf" in schema:
        parts = [list_options(each) for each in schema["anyOf"]]
        return list(dict.fromkeys(value for values, _ in parts for value in values)), any(free for _, free in parts)
    if "enum" in schema:
        return list(schema["enum"]), False
    if "$ref" in schema:
        axis = schema["$ref"].rpartition("/")[2]
        return ([*read_choices(axis)] if axis in list_axes() else [True, False]), axis not in list_axes()
    if schema.get("type") in ("boolean", "null"):
        return ([True, False] if schema["type"] == "boolean" else []), False
    return [], True


def _describe_key(key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"what": key_sentence(key)}
    fills = list_filled().get(key)
    options, free = list_options(fills[0][1].schema) if fills else ([], True)
    return found | ({"options": options} if options and not free else {})
