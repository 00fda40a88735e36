"""Describe the type of a field: its annotation as JSON Schema, and the schema in plain words."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticUndefined

from zoo.spec.node import Node
from zoo.spec.spec import Spec

BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""JSON Schema's names for the bounds of an annotation."""

PLAIN: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}

WORDS = {"boolean": "true or false", "string": "text", "null": "null", "integer": "whole number", "number": "number"}

NOUNS = {"ffn": "a feed-forward", "streams": "streams", "ngrams": "n-grams", "init": "an initialisation"}
"""Name of a component of an axis, if not the axis' own name."""

FEW = 4
"""Maximum number of choices that the description of an axis names."""


def write_schema(hint: Any) -> dict[str, Any]:
    """Write an annotation as JSON Schema. A component is a reference to its axis: `{"$ref": "#/$defs/norm"}`."""
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if isinstance(hint, type) and issubclass(hint, Spec):
        return {"$ref": f"#/$defs/{name_reference(hint)}"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        stated = [getattr(each, "json_schema_input_type", PydanticUndefined) for each in inner[1:]]
        read = [each for each in stated if each is not PydanticUndefined]  # a validator may accept more than the field
        return write_schema(read[0] if read else inner[0]) | _write_bounds(inner[1:])
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [write_schema(each) for each in inner]}
    if origin is tuple:
        items: dict[str, Any] = {"type": "array", "items": write_schema(inner[0])}
        return items if inner[-1] is Ellipsis else items | {"minItems": len(inner), "maxItems": len(inner)}
    if origin is dict:
        return {"type": "object", "additionalProperties": write_schema(inner[1])}
    raise TypeError(f"no JSON Schema is known for {hint}")


def name_reference(base: type[Spec]) -> str:
    """Name the definition of an axis' components. Nodes use their class name, because two nodes may share a name."""
    return base.__name__ if issubclass(base, Node) else base.axis


def _write_bounds(checks: tuple[Any, ...]) -> dict[str, Any]:
    every = [each for check in checks for each in (check, *getattr(check, "metadata", ()))]
    return {
        word: getattr(each, name)
        for each in every
        for name, word in BOUNDS.items()
        if getattr(each, name, None) is not None
    }


def describe_type(schema: Mapping[str, Any], words: Mapping[str, str]) -> str:
    """Describe a schema in words: "whole number above 0", "one of: head, heads, whole", "a norm (rmsnorm, …)". `words`
    describes the components to which the schema refers (`describe_component`)."""
    if "anyOf" in schema:
        found = [describe_type(each, words) for each in schema["anyOf"]]
        if "$ref" in schema["anyOf"][0] and " or " in found[0] and found[1:] == ["null"]:
            return f"{found[0]}; null for none"
        return " or ".join(found) if len(found) < 3 else f"{', '.join(found[:-1])}, or {found[-1]}"
    if "$ref" in schema:
        return words[schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        values = [str(each) for each in schema["enum"]]
        return values[0] if len(values) == 1 else f"one of: {', '.join(values)}"
    if schema["type"] == "array":
        count = f"{schema['minItems']} of " if "minItems" in schema else ""
        return f"list, {count}each {describe_type(schema['items'], words)}"
    if schema["type"] == "object":
        return f"mapping, each name to {describe_type(schema['additionalProperties'], words)}"
    return " ".join([WORDS[schema["type"]], *_describe_bounds(schema)])


def describe_component(base: type[Spec], kinds: Sequence[str]) -> str:
    """Describe the values that stand for a component of an axis: "a norm (rmsnorm, layernorm, …)"."""
    return f"{name_axis(base.axis)} ({', '.join(kinds[:FEW])}{', …' if len(kinds) > FEW else ''})"


def describe_node(names: Sequence[str], word: str, main: str, takes_true: bool) -> str:
    """Describe the values that stand for a node with the fields `names`: "true, a norm (rmsnorm, …), or a mapping of
    norm, over". `main` is the type of the node's main field, `word`."""
    values = main.removeprefix("one of: ").replace(", ", " or ") if main.startswith("one of: ") else ""
    alone = values or (main if main.startswith(("a ", "an ")) else f"a {word} ({main})")
    found = [*(["true"] if takes_true else []), *([alone] if word else []), f"a mapping of {', '.join(names)}"]
    return f"{', '.join(found[:-1])}{',' * (len(found) > 2)} or {found[-1]}" if len(found) > 1 else found[0]


def name_axis(axis: str) -> str:
    """Name a component of an axis, with an article if it takes one."""
    noun = axis.replace("_", " ")
    return NOUNS.get(axis) or f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _describe_bounds(schema: Mapping[str, Any]) -> list[str]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return [f"from {least:g} to {most:,g}"]
    words = {"exclusiveMinimum": "above {:g}", "minimum": "from {:g} up"}
    words |= {"exclusiveMaximum": "below {:g}", "maximum": "at most {:,g}"}
    found = [text.format(schema[key]) for key, text in words.items() if key in schema]
    return [" and ".join(found)] if found else []
