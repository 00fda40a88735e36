"""Drop the fields that a swapped-in choice does not have, and list them.

A packaged model sets fields for its own choices: `attention: {o_bias: false}`, rotary positions, a `rope_theta` of its
local layers. Under `attention=gated_delta` nothing reads them. Fields that the user set stay, and are refused later."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoo.errors import ConfigError
from zoo.grammar.dialect import expand, is_choice, is_fixed, list_fields, list_marks, read_choice
from zoo.grammar.interpolation import Scope
from zoo.grammar.keys import BASES, KNOWN
from zoo.grammar.patches import list_patches
from zoo.grammar.towers import split_towers
from zoo.model.position.base import Position, WithAbsolute
from zoo.spec import Spec


def drop_leftovers(
    body: Mapping[Any, Any], swapped: Mapping[str, Any], touched: Collection[str]
) -> tuple[Any, list[str]]:
    """Drop from a model's YAML, after axes were swapped, the fields that no choice reads any more and the fields that
    mark the old choice (`list_marks`). Returns the YAML's data and the dropped keys. `swapped` maps each swapped axis
    to the word that the user typed for the whole model, if any; `touched` are the keys that the user set."""
    root = expand(body)
    marks: dict[str, Collection[str]] = dict.fromkeys(swapped, ())
    for axis, word in swapped.items():
        stated, node = body.get(axis), root.get(axis)
        if isinstance(word, str) and is_choice(axis, word) and isinstance(node, dict):
            _fix(axis, node, read_choice(BASES[axis], word), touched)
            marks[axis] = list_marks(BASES[axis], word) & (stated.keys() if isinstance(stated, Mapping) else set())
    scopes = [("", root, {}), *((f"{path}.", patch, around) for path, patch, around in list_patches(root))]
    gone = [key for place, node, around in scopes for key in _trim(place, node, around, marks, touched)]
    gone += _drop_unread(root, touched)
    return root, gone


def _trim(
    place: str,
    scope: dict[Any, Any],
    around: Mapping[Any, Any],
    marks: Mapping[str, Collection[str]],
    touched: Collection[str],
) -> Iterator[str]:
    """Delete the fields of swapped components that the new choice does not have, and in the model's own components the
    fields that mark the old choice (`marks`, by axis). Yields the deleted keys."""
    for axis, gone in marks.items():
        node, before = scope.get(axis), around.get(axis)
        if isinstance(node, dict):
            kind = node.get("kind", before.get("kind") if isinstance(before, Mapping) else None)
            yield from _trim_node(f"{place}{axis}", node, BASES[axis], kind, () if place else gone, touched)


def _fix(place: str, node: dict[Any, Any], choice: Mapping[Any, Any], touched: Collection[str]) -> None:
    """Give a component (`node`) the values that the file of its new choice fixes, except where the user set a field.
    The same is done for the components among its fields."""
    for name, value in choice.items():
        key, old = f"{place}.{name}", node.get(name)
        if isinstance(value, Mapping) and isinstance(old, dict):
            _fix(key, old, value, touched)
        elif is_fixed(name, value) and not _is_touched(key, touched):
            node[name] = value


def _trim_node(
    place: str, node: dict[Any, Any], base: type[Spec], kind: Any, gone: Collection[str], touched: Collection[str]
) -> Iterator[str]:
    """Delete the fields of a component that its choice does not have or whose value it refuses, and the fields in
    `gone`; likewise in the components among its fields. What the user set (`touched`) stays. Yields the deleted
    keys."""
    if (choice := base.kinds.get(kind)) is None:
        return
    known = {"kind", *(field.name for field in choice.fields())} - set(gone)
    slots = list_fields(choice) if any(isinstance(value, dict) for value in node.values()) else {}
    for name, value in list(node.items()):
        key = f"{place}.{name}"
        if _is_touched(key, touched):
            continue
        if name not in known or _refuses(choice, name, value):
            del node[name]
            yield key
        elif name in slots and isinstance(value, dict) and "kind" in value:
            yield from _trim_node(key, value, slots[name], value["kind"], (), touched)


def _is_touched(key: str, touched: Collection[str]) -> bool:
    """Tell whether the user set a key, a key below it, or a key above it. An axis above it does not count: a swapped
    axis is why its fields are dropped."""
    own = (each for each in touched if each.rpartition(".")[2] not in BASES)
    return any(each == key or each.startswith(f"{key}.") for each in touched) or any(
        key.startswith(f"{e}.") for e in own
    )


def _refuses(choice: type[Spec], name: str, value: object) -> bool:
    """Tell whether a field of the choice refuses this word or null: `bias: qkv` for a field that is true or false."""
    if name == "kind" or not (value is None or isinstance(value, str)) or "${" in str(value):
        return False
    hint = typing.get_type_hints(choice, include_extras=True)[name]
    if value is None or name in list_fields(choice):
        return value is None and type(None) not in typing.get_args(hint)
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return True
    return False


def _drop_positions(root: dict[Any, Any], idle: Collection[str], touched: Collection[str]) -> Iterator[str]:
    """Set `position` to none in each tower of `idle` ("" is the model), whose attention reads no positions. A tower
    that states no positions has the model's. Positions that the user set (`touched`), or that are added at the
    embedding, stay. Yields the dropped keys."""
    for name in dict.fromkeys(idle):
        scope, place = (root.get(name) or {}, f"{name}.position") if name else (root, "position")
        node = scope.get("position", root.get("position"))
        kind: Any = node.get("kind") if isinstance(node, dict) else None
        scheme = Position.kinds.get(kind)
        stated = any(each == place or each.startswith(f"{place}.") for each in touched)
        if scheme is not None and kind != "none" and not stated and not _embeds(scheme, node):
            scope["position"] = {"kind": "none"}
            root |= {name: scope} if name else {}
            yield f"{place} ({kind})"


def _embeds(scheme: type[Any], node: Any) -> bool:
    """Tell whether a position scheme adds anything at the embedding."""
    return node.get("absolute") is not None if issubclass(scheme, WithAbsolute) else scheme.embed is not Position.embed


def _drop_unread(root: dict[Any, Any], touched: Collection[str]) -> Iterator[str]:
    """Drop positions that act inside attention if no attention reads them, and keys of layer patches that no layer of
    that kind reads. Yields the dropped keys."""
    try:
        towers = split_towers(Scope(root), [])
        reads = [tower.read_blocks()[1] for tower in towers]
    except ConfigError:  # reported when the Spec is read
        return
    idle = [
        t.name for t, read in zip(towers, reads, strict=True) if not any("position" in names for names in read.values())
    ]
    yield from _drop_positions(root, ["", *idle] if len(idle) == len(towers) else idle, touched)
    known = KNOWN.union(*(tower.asked for tower in towers))
    for tower, read in zip(towers, reads, strict=True):
        scope = root[tower.name] if tower.name and "layers" in root.get(tower.name, {}) else root
        for layer, key in tower.list_unread(read):
            place = f"{tower.prefix if scope is not root else ''}layers.{layer}.{key}"
            if key in known and place not in touched and key in scope.get("layers", {}).get(layer, {}):
                del scope["layers"][layer][key]
                yield place
