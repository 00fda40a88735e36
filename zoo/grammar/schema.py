"""Write the JSON Schema of model files in the plain dialect, for completion, checks and explanations in editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zoo.grammar.dialect import list_fields, list_slots
from zoo.grammar.keys import BASES, BOTH, OWN, STRUCTURE, TOWERS
from zoo.grammar.pattern import RULE
from zoo.grammar.vocabulary import COMMON, AxisChoice, describe_axis, list_axes, list_filled, list_nodes, read_choices
from zoo.model.tower import Topology
from zoo.spec import Node, Spec
from zoo.spec.types import name_reference

Schema = dict[str, Any]

NEEDED = ("vocab_size", "d_model", "n_layers", "max_seq_len")
"""Keys that every model states itself or inherits from the model in its `defaults`."""

TEXTS: dict[str, Schema] = {
    "about": {"type": "object"},
    "kind": {"enum": list(Topology.kinds)},
    "n_layers": {"type": "integer", "minimum": 1},
}
"""Schemas of keys that the grammar reads itself; those of `layers` and `pattern` are in `_list_structure`."""


def make_schema() -> Schema:
    """Make the JSON Schema of a model's file."""
    keys = {**_list_dimensions(), **_list_slots()}
    model = {**keys, **_list_structure(), **{tower: _refer("tower") for tower in TOWERS}}
    inside = {name: value for name, value in {**keys, **_list_structure()}.items() if name not in ("about", "kind")}
    patch = {**keys, "like": {"type": "string", "description": "Another kind of layer, which this one changes."}}
    axes = [axis for axis in list_axes() if axis != "topology"]
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A model of Zoo",
        "description": "docs/yaml.md says how a model is written.",
        "type": "object",
        "properties": {"defaults": {"type": "array", "description": "The model that this one starts from."}, **model},
        "additionalProperties": False,
        "if": {"not": {"required": ["defaults"]}},
        "then": {"required": list(NEEDED)},
        "$defs": {
            "tower": _make_mapping(inside, "The keys of the model that differ in this tower."),
            "layer": _make_mapping(patch, "The keys of the model that differ in these layers."),
            **{name: each for axis in axes for name, each in _define_axis(axis)},
            **{name: _define_node(base) for name, base in list_nodes().items()},
        },
    }
    whole = _let_interpolate(whole)
    whole["$defs"]["interpolation"] = {"type": "string", "pattern": r"^\$\{", "description": "Read from around."}
    return whole


def _let_interpolate(node: object) -> Any:
    """Allow an interpolation as the value of every key but `kind`: the packaged files use interpolations."""
    if isinstance(node, list):
        return [_let_interpolate(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: _let_interpolate(value) for key, value in node.items()}
    if isinstance(properties := made.get("properties"), dict):
        for key, value in properties.items():
            if key != "kind":
                described = {"description": value.pop("description")} if "description" in value else {}
                parts = value["anyOf"] if set(value) == {"anyOf"} else [value]
                properties[key] = {"anyOf": [*parts, _refer("interpolation")], **described}
    return made


def _refer(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _make_mapping(properties: Mapping[str, Any], description: str) -> Schema:
    return {
        "type": ["object", "null"],
        "description": description,
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _list_structure() -> dict[str, Schema]:
    """Make the schemas of the keys that the grammar reads itself."""
    texts = {"type": "string"}
    rule = {"every": {"type": "integer", "minimum": 2}, "is": texts, "else": texts}
    assert set(rule) == set(RULE)
    found = {
        **TEXTS,
        "layers": {"type": "object", "additionalProperties": _refer("layer")},
        "pattern": {
            "anyOf": [
                {"type": "array", "items": texts, "minItems": 1},
                texts,
                {"type": "object", "properties": rule, "required": ["every", "is"], "additionalProperties": False},
            ]
        },
    }
    return {name: {**each, "description": STRUCTURE[name]} for name, each in found.items()}


def _list_dimensions() -> dict[str, Schema]:
    """Make the schemas of a model's dimensions. A key has the schema of the fields that it fills, or of the model's own
    field."""
    found = {}
    for key, fills in list_filled().items():
        schemas = [field.schema for _, field in fills]
        text = COMMON.get(key) or next((field.sentence for _, field in fills if field.text), "")
        found[key] = _describe(_join(schemas), text)
    for topology in ("encoder_decoder", "decoder"):
        for name, field in read_choices("topology")[topology].fields.items():
            if name in OWN | BOTH and name not in STRUCTURE:
                found[name] = _describe(_widen(field.schema), field.sentence)
    return found


def _list_slots() -> dict[str, Schema]:
    """Make the schemas of a model's keys that hold a component. `cross`, `router` and keys that are no axis may be true
    or false."""
    found = {}
    for key, base in list_slots().items():
        if key not in TOWERS:
            axis = key if key == "cross" else name_reference(base)
            also = ["null"] if key in BASES and key not in ("cross", "router") else ["boolean", "null"]
            found[key] = {"anyOf": [_refer(axis), {"type": also}], "description": describe_axis(key)}
    return found


def _join(schemas: Iterable[Schema]) -> Schema:
    """Join the schemas of several fields to one that accepts any of their values."""
    parts: list[Schema] = []
    for schema in map(_widen, schemas):
        parts += [each for each in schema.get("anyOf", [schema]) if each not in parts]
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _widen(schema: Schema) -> Schema:
    """Allow true (the usual choice) and false (none) for a field that holds a component."""
    parts = schema.get("anyOf", [schema])
    return {"anyOf": [*parts, {"type": "boolean"}]} if any("$ref" in each for each in parts) else schema


def _describe(schema: Schema, text: str) -> Schema:
    return {**schema, "description": text} if text else schema


def _define_axis(axis: str) -> Iterable[tuple[str, Schema]]:
    """Define the values for a component of an axis: a word, or a mapping with the fields of its kind."""
    base, choices = list_axes()[axis], dict(read_choices(axis))
    if axis == "cross":
        choices = {**read_choices("attention"), **choices}
    words = [_describe({"const": word}, choice.what) for word, choice in choices.items()]
    by_kind: dict[type[Spec], list[str]] = {}
    for word, choice in choices.items():
        by_kind.setdefault(choice.spec, []).append(word)
    name = {kind: f"{base.axis}.{kind.kind}" for kind in by_kind}
    cases = [
        {"if": {"properties": {"kind": {"enum": each}}, "required": ["kind"]}, "then": _refer(name[kind])}
        for kind, each in by_kind.items()
    ]
    plain = {"if": {"not": {"required": ["kind"]}}, "then": _refer(f"{base.axis}.fields")}
    mapping = {"type": "object", "properties": {"kind": {"enum": list(choices)}}, "allOf": [*cases, plain]}
    yield axis, _describe({"anyOf": [{"oneOf": words}, mapping]}, describe_axis(axis))
    if axis == "cross":
        return  # its kinds are attention's
    for kind in by_kind:
        choice = AxisChoice(axis, kind.kind, kind, {}, "")
        yield name[kind], _define_kind(_list_fields([choice]), choice.what)
    yield f"{base.axis}.fields", _define_kind(_list_fields(choices.values()), "Fields of the choice that is there.")


def _define_node(base: type[Node]) -> Schema:
    """Define a node: a value of its main field, or a mapping of the node's fields and of the fields of the component in
    the main field."""
    node = AxisChoice("", base.axis, base, {}, "")
    fields = _list_fields([node])
    main = list_fields(base).get(base.word)
    if main is not None:
        kinds = read_choices(main.axis).values()
        fields = {"kind": {"enum": [each.word for each in kinds]}, **_list_fields(kinds), **fields}
    mapping = {"type": "object", "properties": fields, "additionalProperties": False}
    short = [fields[base.word]] if base.word else []
    return _describe({"anyOf": [*short, mapping, {"type": "boolean"}]}, node.what)


def _define_kind(fields: Mapping[str, Schema], text: str) -> Schema:
    return _describe({"properties": {"kind": {"type": "string"}, **fields}, "additionalProperties": False}, text)


def _list_fields(choices: Iterable[AxisChoice]) -> dict[str, Schema]:
    """Make the schemas of the fields of several choices. A field that several choices have accepts what any of them
    accepts."""
    schemas: dict[str, list[Schema]] = {}
    texts: dict[str, str] = {}
    for choice in choices:
        for name, field in choice.fields.items():
            default = [] if field.is_required or field.default is not None else [{"type": "null"}]
            schemas.setdefault(name, []).extend([field.schema, *default])
            texts[name] = texts.get(name) or field.sentence
    return {name: _describe(_join(each), texts[name]) for name, each in schemas.items()}
