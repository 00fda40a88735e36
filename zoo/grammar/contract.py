"""Write a model's YAML in the plain dialect: the inverse of `expand`. A node equal to a choice's file becomes that
choice's word; any other node becomes a word with the fields that differ."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import MISSING
from typing import Any

from zoo.grammar.dialect import (
    SHARED,
    expand,
    find_usual,
    keep_stated,
    list_fields,
    list_files,
    list_slots,
    read_choice,
)
from zoo.grammar.interpolation import Scope, read_literal, settle, split_interpolation
from zoo.grammar.keys import BASES, BOTH, KNOWN, TOWERS
from zoo.grammar.patches import lay_patch, list_patches
from zoo.spec import Node, Spec


def contract(body: Mapping[Any, Any]) -> dict[Any, Any]:
    """Write a composed model's YAML in the plain dialect, without unknown keys. `expand` gives the same model back."""
    root = expand(body)
    found = contract_keys(root, {})
    for tower in TOWERS:
        if isinstance(patch := root.get(tower), Mapping):
            found[tower] = contract_keys(patch, root)
    settled = settle(Scope(found))
    known = KNOWN | BOTH | SHARED.keys() | set(TOWERS) | find_names(expand(settled))
    return {key: value for key, value in settled.items() if key in known and not (key == "layers" and not value)}


def contract_choices(body: Mapping[Any, Any]) -> dict[Any, Any]:
    """Replace each axis node with a kind, in a model's YAML, by the name of a choice's file and the fields that differ
    from this file. Then an axis can be swapped by replacing the name."""
    slots = list_slots()
    stated = {key for key in BASES if isinstance(node := body.get(key), Mapping) and "kind" in node}
    return {key: _contract(value, slots[key], None, body) if key in stated else value for key, value in body.items()}


def find_names(body: Mapping[Any, Any]) -> set[str]:
    """Find the names that the interpolations in a model's YAML look up."""
    return set(re.findall(r"\b[^\W\d]\w*", " ".join(re.findall(r"\$\{(?:up|or):([^{}]*)\}", str(body)))))


def contract_keys(node: Mapping[Any, Any], around: Mapping[Any, Any]) -> dict[Any, Any]:
    """Shorten the choices of an expanded model, or of a patch of the model `around`. Interpolations are kept."""
    slots = list_slots()
    stated = {*node, *around}.union(*(patch for each in (node, around) for _, patch, _ in list_patches(each)))
    found = {
        key: _contract(value, slots[key], around.get(key), stated) if key in slots and key not in TOWERS else value
        for key, value in node.items()
    }
    found |= {key: word for key in BASES if (word := _find_word(key, node, around))}
    if isinstance(layers := node.get("layers"), Mapping):
        scope = {**around, **node}
        found["layers"] = {
            name: contract_keys(patch, scope) if isinstance(patch, Mapping) else patch for name, patch in layers.items()
        }
    return found


def _find_word(axis: str, patch: Mapping[Any, Any], around: Mapping[Any, Any]) -> str | None:
    """Find a word with the same effect as the choice that a patch states, laid over the model's own choice of the same
    kind. None if there is no such word, or if the kinds differ."""
    node, old = patch.get(axis), around.get(axis)
    kind = node.get("kind") if isinstance(node, Mapping) else None
    if kind is None or not isinstance(old, Mapping) or old.get("kind") != kind:
        return None
    whole = lay_patch(old, node, axis, [])
    for word in sorted(list_files(axis)):
        if read_choice(BASES[axis], word)["kind"] == kind:
            laid = lay_patch(old, {**keep_stated(axis, word, patch, around), "kind": kind}, axis, [])
            if laid == whole:
                return word
    return None


def _find_rest(
    fields: Mapping[str, Any], whole: Mapping[str, Any], choice: type[Spec] | None = None, stated: Container[Any] = ()
) -> dict[str, Any]:
    """List the `fields` whose values differ from those in a choice's file (`whole`). A field that the file does not
    state is compared with its default in the class `choice`. Mappings of the same kind are compared field by field.
    `stated` are the keys that the file's interpolations may find; empty if unknown."""
    rest = {}
    defaults = {field.name: field.default for field in choice.fields()} if choice else {}
    for key, value in fields.items():
        usual = whole.get(key, defaults.get(key, MISSING))
        names, literal = split_interpolation(usual)
        unset = literal is not None and stated and not any(name in stated for name in names)
        if value == usual or (unset and value == read_literal(literal or "")):
            continue
        both = isinstance(value, Mapping) and isinstance(usual, Mapping) and usual.get("kind") == value.get("kind")
        inner = _find_rest(value, usual) if both and usual.keys() <= value.keys() else value  # type: ignore[union-attr,arg-type]
        rest[key] = inner
    return rest


def _contract_node(node: object, base: type[Node], around: object) -> Any:
    """Shorten a `Node`: to the value of its main field if it has no other field."""
    slots = list_fields(base)
    main = slots.get(base.word)
    if main is not None and (not isinstance(node, Mapping) or "kind" in node):
        return _contract(node, main)
    if not isinstance(node, Mapping):
        return node
    fields = {key: _contract(value, slots[key]) if key in slots else value for key, value in node.items()}
    if isinstance(around, Mapping):
        return fields
    if main is not None and len(fields) > 1 and fields.get(base.word) is True:
        del fields[base.word]
    return fields[base.word] if set(fields) == {base.word} else fields or True


def _contract(node: object, base: type[Spec], around: object = None, stated: Container[Any] = ()) -> Any:
    """Shorten one component: to a word, or to a word with the fields that differ. For a component at the model's top
    level, `stated` are the keys that the model states."""
    if issubclass(base, Node):
        return _contract_node(node, base, around)
    if isinstance(node, str) and node == find_usual(base):
        return True
    if not isinstance(node, Mapping):
        return node
    kind = node.get("kind", base.default)
    if kind not in base.kinds:
        return node
    slots = list_fields(base.kinds[kind])
    fields = {key: _contract(value, slots[key]) if key in slots else value for key, value in node.items()}
    if "kind" not in node or (isinstance(around, Mapping) and around.get("kind") == kind):
        return fields  # a patch over the node around: a word would bring all fields of its choice
    found: list[tuple[int, Any]] = [(len(fields), fields)]
    for word in sorted(list_files(base.axis) | {kind}):
        choice = read_choice(base, word)
        if choice.get("kind") == kind and choice.keys() <= node.keys():
            whole = {key: _contract(value, slots[key]) if key in slots else value for key, value in choice.items()}
            rest = _find_rest(fields, whole, base.kinds[kind], stated)
            found.append((len(rest), {"kind": word, **rest} if rest else word))
    return min(found, key=lambda each: each[0])[1] if base.axis in BASES else found[0][1]
