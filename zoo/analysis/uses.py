"""Find the packaged models and families that have a choice or set a field. Their YAMLs are read, not composed."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from zoo.compose.catalogue import read_bodies
from zoo.families.codecs.rope import SCALINGS
from zoo.families.family import Family, family_names, read_family
from zoo.grammar import TOWERS
from zoo.grammar.contract import contract
from zoo.grammar.dialect import find_usual, list_fields, list_slots
from zoo.grammar.patches import list_patches
from zoo.grammar.vocabulary import list_axes, read_choices, write_value
from zoo.spec import Node, Spec

LONGEST = 60
"""Maximum characters of a value that is shown whole."""

ROPE = re.compile(r"=.*\brope\w*\(")
"""Matches a family's expression by which a config.json may state any scaling of rotary positions."""


class Use(NamedTuple):
    """A component in a YAML: the dotted path of its node, its axis, the possible choices (`words`; several in a
    family's expression), the class of the first choice, and the fields that are set."""

    path: str
    axis: str
    words: tuple[str, ...]
    spec: type[Spec]
    fields: Mapping[str, Any]


def list_uses(body: Mapping[str, Any]) -> Iterator[Use]:
    """List the components in a model's body: a file of conf/model, or a family's `model`."""
    chosen = _read_chosen(body)
    for axis, word in chosen.items():
        if axis in list_axes() and not isinstance(body.get(axis), Mapping):
            yield Use(axis, axis, (str(word),), read_choices(axis)[str(word)].spec, {})
    for path, node in [("", body), *((f"{path}.", patch) for path, patch, _ in list_patches(body))]:
        yield from _walk(node, chosen, path)


def _read_chosen(body: Mapping[str, Any]) -> dict[str, Any]:
    """Read the choices in a body's `defaults` list, by axis."""
    return {
        group.removeprefix("override ").lstrip("/"): word
        for each in body.get("defaults", ())
        if isinstance(each, Mapping)
        for group, word in each.items()
    }


def _walk(node: Mapping[str, Any], chosen: Mapping[str, str], path: str) -> Iterator[Use]:
    slots = list_slots()
    for key, value in node.items():
        base = slots.get(key)
        if base is None or key in TOWERS:
            continue
        if issubclass(base, Node):
            yield from _walk_node(base, value, f"{path}{key}")
        else:
            axis = key if key == "cross" else base.axis
            yield from _walk_component(axis, value, chosen.get(key), f"{path}{key}")


def _walk_component(axis: str, value: object, around: str | None, path: str) -> Iterator[Use]:
    fields = {key: each for key, each in value.items() if key != "kind"} if isinstance(value, Mapping) else {}
    stated = value.get("kind", around) if isinstance(value, Mapping) else value
    base = list_axes()[axis]
    words = tuple(word for word in read_words(stated or base.default) if word in read_choices(axis))
    if words:
        choice = read_choices(axis)[words[0]]
        yield Use(path, axis, words, choice.spec, fields)
        yield from _walk_fields(choice.spec, choice.body, fields, path)
    if axis == "position" and ROPE.match(str(stated)):
        yield Use(f"{path}.scaling", "rope_scaling", SCALINGS, list_axes()["rope_scaling"], {})


def _walk_fields(spec: type[Spec], body: Mapping[str, Any], fields: Mapping[str, Any], path: str) -> Iterator[Use]:
    """List the components within the fields of a component. `body` is the file of the component's choice."""
    slots = list_fields(spec) if fields else {}
    for name, value in fields.items():
        base, below = slots.get(name), body.get(name)
        if base is not None and issubclass(base, Node):
            yield from _walk_node(base, value, f"{path}.{name}")
        elif base is not None:
            usual = below.get("kind") if isinstance(below, Mapping) else None
            yield from _walk_component(base.axis, value, usual, f"{path}.{name}")


def _walk_node(base: type[Node], value: object, path: str) -> Iterator[Use]:
    """List a node, and the components within its fields. Keys of a mapping that are not fields of the node, or a value
    that is no mapping, belong to the node's main field."""
    if value is None or value is False:
        return
    own = {field.name for field in base.fields()}
    stated = value if isinstance(value, Mapping) else {}
    fields = {key: each for key, each in stated.items() if key in own}
    rest = {key: each for key, each in stated.items() if key not in own} if stated else value
    if base.word and rest and base.word not in fields and rest is not True:
        fields[base.word] = rest
    yield Use(path, base.axis, (base.axis,), base, fields)
    yield from _walk_fields(base, {}, fields, path)


def read_words(value: object) -> list[str]:
    """Read the choices that a value may name: a word, or all words of a family's expression."""
    if not isinstance(value, str) or "${" in value:
        return []
    return re.findall(r"\w+", value) if value.startswith("=") else [value]


@functools.cache
def read_uses() -> tuple[dict[str, list[Use]], dict[str, list[Use]]]:
    """List the components of every packaged model, and of every family."""
    models = {name: list(list_uses(body)) for name, body in read_bodies().items()}
    families = {
        name: [use for body in _list_models(read_family(name)) for use in list_uses(body)] for name in family_names()
    }
    for uses in (*models.values(), *families.values()):
        sparse = any(word.startswith("moe") for use in uses if use.axis == "ffn" for word in use.words)
        uses[:] = [
            use for use in uses if use.axis != "router" or sparse
        ]  # a dense model's file may name a router that only experts would use
    return models, families


def _list_models(family: Family) -> Iterator[Mapping[str, Any]]:
    """List the `model` of a family, and of each tower that has a config of its own within config.json."""
    yield family.model
    yield from (tower.family.model for tower in family.towers.values() if tower.family is not None)


def find_users(axis: str, word: str) -> tuple[list[str], list[str]]:
    """List the packaged models and the families that have a choice."""
    models, families = (
        sorted(name for name, uses in found.items() if any(use.axis == axis and word in use.words for use in uses))
        for found in read_uses()
    )
    return models, families


def is_for_encoders(axis: str, word: str) -> bool:
    """Whether a choice has users among packaged models and families, and all of them are encoders."""
    models, families = find_users(axis, word)
    bodies = [*(read_bodies()[name] for name in models), *(read_family(name).model for name in families)]
    return {body.get("kind") for body in bodies} == {"encoder"}


def find_setters(spec: type[Spec], field: str) -> tuple[dict[str, list[str]], list[str]]:
    """Find who sets a field of a class. Return two things: the packaged models by the value that they set, as YAML,
    the most frequent value first; and the families."""
    models, families = read_uses()
    bodies = read_bodies()
    values: dict[str, list[str]] = {}
    for name, uses in models.items():
        for value in dict.fromkeys(
            _spell(use.fields[field], bodies[name], spec, field) for use in _of(uses, spec, field)
        ):
            values.setdefault(value, []).append(name)
    counted = Counter({value: len(names) for value, names in values.items()})
    whose = sorted(name for name, uses in families.items() if any(_of(uses, spec, field)))
    return {value: sorted(values[value]) for value, _ in counted.most_common()}, whose


def _of(uses: Iterable[Use], spec: type[Spec], field: str) -> Iterator[Use]:
    for use in uses:
        if field in use.fields and use.spec is spec:
            yield use


def _spell(value: object, body: Mapping[str, Any], spec: type[Spec], field: str) -> str:
    """Write a value as a user would, on one line. A component longer than LONGEST characters is written as its kind."""
    settled = _settle(value, body, list_fields(spec).get(field))
    text = write_value(settled)
    return str(settled["kind"]) if len(text) > LONGEST and isinstance(settled, Mapping) and "kind" in settled else text


def _settle(value: object, body: Mapping[str, Any], base: type[Spec] | None) -> Any:
    """Write the default component of a field as `true`, and an interpolation (`${up:d_model}`) as its value in the
    model's `body`."""
    main = list_fields(base).get(base.word) if base is not None and issubclass(base, Node) else base
    if main is not None and value == find_usual(main):
        return True
    if isinstance(value, Mapping):
        kind = base.kinds.get(value.get("kind", base.default)) if base is not None else None
        slots = list_fields(kind) if kind is not None else {}
        return {key: _settle(each, body, slots.get(key)) for key, each in value.items()}
    found = re.fullmatch(r"\$\{(?:up|or):(\w+)[^{}]*\}", str(value))
    return body.get(found[1], value) if found else value


def list_stated(key: str) -> dict[str, list[str]]:
    """List the packaged models that state a key, also within a layer or a tower, by the key's value."""
    found: dict[str, list[str]] = {}
    for name, body in read_bodies().items():
        stated = _read_everywhere(body, key)
        if "${" in str(stated):  # as a user would write it: words for choices, numbers for interpolations
            own = {name: value for name, value in body.items() if name != "defaults"}
            stated = _read_everywhere(contract({**_read_chosen(body), **own}), key)
        for value in dict.fromkeys(map(write_value, stated)):
            found.setdefault(value, []).append(name)
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def _read_everywhere(body: Mapping[Any, Any], key: str) -> list[Any]:
    """Read the values of a key in a body, in its kinds of layer and in its towers."""
    return [each[key] for each in (body, *(patch for _, patch, _ in list_patches(body))) if key in each]
