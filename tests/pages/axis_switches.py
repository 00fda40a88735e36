"""List the optional fields of an axis' choices: those that are off (null or false), each with the override that
switches it on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from zoo.analysis.trying import FieldExample, read_common, try_field
from zoo.analysis.uses import find_setters
from zoo.grammar.vocabulary import AxisChoice, list_words, read_choices
from zoo.spec import Node
from zoo.spec.fields import SpecField

OFF = (None, False)
FIRST = {"attention": "gqa", "ffn": "gated", "position": "rope", "norm": "rmsnorm", "block": "pre"}
"""The choice in which a field of several choices is tried first."""


class Switch(NamedTuple):
    """An optional field: its name, the `choices` that have it, its sentence, and an example that switches it on."""

    field: str
    choices: tuple[str, ...]
    what: str
    example: FieldExample


def list_switches(axis: str) -> list[Switch]:
    """List the optional fields of an axis, by name. Fields of several choices with equal names and descriptions are
    listed once; a field that no small model accepts is left out."""
    found: dict[tuple[str, str], dict[str, AxisChoice]] = {}
    for word, choice in read_choices(axis).items():
        for field in choice.fields.values():
            if any(field.default is each for each in OFF):
                found.setdefault((field.name, field.sentence), {})[word] = choice
    made = (_make_switch(axis, *key, choices) for key, choices in found.items())
    return sorted((each for each in made if each is not None), key=lambda each: (each.field, each.choices))


def _make_switch(axis: str, name: str, what: str, choices: dict[str, AxisChoice]) -> Switch | None:
    usual = FIRST.get(axis, "")
    for word in sorted(choices, key=lambda word: (word != usual, word)):
        choice = choices[word]
        example = try_field(choice, choice.fields[name], list(_list_spoken(choice, choice.fields[name])))
        if example is not None and example.line and not example.override.endswith(("=null", "=false")):
            return Switch(name, tuple(sorted(choices)), what, example)
    return None


def _list_spoken(choice: AxisChoice, field: SpecField) -> Iterator[Any]:
    """List values that switch a field on, as people say them: the word of a node's main field (a norm, an activation),
    then what packaged models state."""
    node = choice.open_node(field.name)
    stated = [each for each in read_common(find_setters(choice.spec, field.name)[0]) if each not in (None, False)]
    if node is not None and issubclass(node.spec, Node) and node.spec.word:
        schema = node.fields[node.spec.word].schema
        yield from schema.get("enum", ())
        if "$ref" in schema:
            axis = schema["$ref"].rpartition("/")[2]
            yield from (word for word in list_words(axis) if word == FIRST.get(axis))
        yield from (each[node.spec.word] for each in stated if isinstance(each, dict) and [*each] == [node.spec.word])
    yield from stated
