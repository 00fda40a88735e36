"""Leave out what the choice before had and the one that was swapped in has not, and say so.

A packaged model sets fields for its own choices: `attention: {o_bias: false}`, rotary positions, a `rope_theta` of its
local layers. Under `attention=gated_delta` nothing reads them. What the user set by hand stays, and is refused."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zoo.errors import ConfigError
from zoo.grammar.dialect import expand, list_fields
from zoo.grammar.interpolation import Scope
from zoo.grammar.keys import BASES, TOWERS
from zoo.grammar.towers import split_towers
from zoo.model.attention import Attention
from zoo.model.position import Position
from zoo.spec import Spec


def drop_leftovers(
    body: Mapping[Any, Any], swapped: Collection[str], touched: Collection[str]
) -> tuple[Any, list[str]]:
    """Leave out of a model's body what no choice reads any more, where axes were `swapped`. Gives the body and the keys
    that were left out. `touched` are the keys that the user set."""
    root = expand(body)
    gone = [key for place, node, around in _list_scopes(root) for key in _trim(place, node, around, swapped, touched)]
    gone += _drop_position(root, touched)
    gone += _drop_idle(root, touched)
    return root, gone


def _list_scopes(root: dict[Any, Any]) -> Iterator[tuple[str, dict[Any, Any], Mapping[Any, Any]]]:
    """List the body and its patches: each one's place, itself, and the body around it."""
    yield "", root, {}
    towers = [(f"{name}.", root[name]) for name in TOWERS if isinstance(root.get(name), dict)]
    yield from ((prefix, node, root) for prefix, node in towers)
    for prefix, scope in [("", root), *towers]:
        layers = scope.get("layers")
        for name, patch in layers.items() if isinstance(layers, dict) else ():
            if isinstance(patch, dict):
                yield f"{prefix}layers.{name}.", patch, {**root, **scope}


def _trim(
    place: str, scope: dict[Any, Any], around: Mapping[Any, Any], swapped: Collection[str], touched: Collection[str]
) -> Iterator[str]:
    """Take the fields out of swapped components that their choice does not have."""
    for axis in swapped:
        node, before = scope.get(axis), around.get(axis)
        if not isinstance(node, dict):
            continue
        kind = node.get("kind", before.get("kind") if isinstance(before, Mapping) else None)
        choice = BASES[axis].kinds.get(kind) if isinstance(kind, str) else None
        if choice is None:
            continue
        known = {"kind", *(field.name for field in choice.fields())}
        for name in [name for name in node if name not in known or _refuses(choice, name, node[name])]:
            key = f"{place}{axis}.{name}"
            if not any(each == key or each.startswith(f"{key}.") for each in touched):
                del node[name]
                yield key


def _refuses(choice: type[Spec], name: str, value: Any) -> bool:
    """Tell whether a field of the choice takes no such word, and no null: `bias: qkv` where it is true or false."""
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


def _drop_position(root: dict[Any, Any], touched: Collection[str]) -> Iterator[str]:
    """Leave out positions that act inside attention, where no attention takes any."""
    node = root.get("position")
    kind = node.get("kind") if isinstance(node, dict) else None
    scheme = Position.kinds.get(kind) if isinstance(kind, str) else None
    if scheme is None or kind == "none" or scheme.embed is not Position.embed:  # type: ignore[attr-defined]
        return
    if any(each == "position" or each.startswith("position.") for each in touched):
        return
    mixers = [scope.get("attention") for _, scope, _ in _list_scopes(root)]
    mixers += [each for _, scope, _ in _list_scopes(root) for each in _list_own_mixers(scope.get("block"))]
    if not any(_takes_position(each) for each in mixers if isinstance(each, dict) and "kind" in each):
        root["position"] = {"kind": "none"}
        yield f"position ({kind})"


def _list_own_mixers(block: Any) -> list[Any]:
    """List the attentions that a block states itself, beside the model's."""
    kind = block.get("kind") if isinstance(block, dict) else None
    choice = BASES["block"].kinds.get(kind) if isinstance(kind, str) else None
    return (
        [] if choice is None else [block.get(name) for name, axis in list_fields(choice).items() if axis is Attention]
    )


def _takes_position(node: Mapping[Any, Any]) -> bool:
    kind = node.get("kind")
    choice = Attention.kinds.get(kind) if isinstance(kind, str) else None
    if choice is None or "position" in list_fields(choice):
        return True
    inner = [node.get(name) for name, axis in list_fields(choice).items() if axis is Attention]
    return any(_takes_position(each) if isinstance(each, Mapping) else each is not None for each in inner)


def _drop_idle(root: dict[Any, Any], touched: Collection[str]) -> Iterator[str]:
    """Take the keys out of layer patches that no layer of that kind reads."""
    try:
        towers = split_towers(Scope(root), [])
        asked = set().union(*(tower.asked for tower in towers))
        found = [(tower.prefix, *each) for tower in towers for each in tower.list_idle(asked)]
    except ConfigError:  # what is missing is told when the Spec is read
        return
    for prefix, layer, key in found:
        scope = root[prefix[:-1]] if prefix and "layers" in root.get(prefix[:-1], {}) else root
        place = f"{prefix if scope is not root else ''}layers.{layer}.{key}"
        if place not in touched and key in scope.get("layers", {}).get(layer, {}):
            del scope["layers"][layer][key]
            yield place
