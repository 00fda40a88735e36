"""Locate the faults of a Spec: find the YAML key that states the faulty value, by following interpolations back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from pydantic import ValidationError

from zoo.grammar.interpolation import Scope, split_interpolation
from zoo.grammar.pattern import get_kinds
from zoo.grammar.towers import TowerNode


def locate_faults(error: ValidationError, towers: Mapping[str, TowerNode]) -> list[str]:
    """Write one line for each fault, at the key that the user has to change."""
    found = ((locate_key(item["loc"], towers), item["msg"]) for item in error.errors(include_url=False))
    return [f"kind: {text[5:]}" if key == "model" and text[:6] == "kind '" else f"{key}: {text}" for key, text in found]


def locate_key(loc: Iterable[Any], towers: Mapping[str, TowerNode]) -> str:
    """Find the YAML key that states a value of the model's plain data."""
    path = [str(step) for step in loc]
    tower = towers.get("") or towers.get(path.pop(0) if path[:1] and path[0] in towers else "")
    return ".".join(path) or "model" if tower is None else _locate(path, tower)


def _locate(path: list[str], tower: TowerNode) -> str:
    """Find the key, as a path from the model, that states a value of a tower's plain data."""
    where = ".".join(path) or tower.name
    if path[:1] == ["blocks"] and len(path) > 1:
        where = _follow(tower.scopes[path[1]], ["block", *path[2:]])
        if look_up(get_kinds(tower.root).get(path[1]), where) is not None:
            where = f"layers.{path[1]}.{where}"
    elif path:
        where = _follow(tower.root, path)
    own = tower.name and where and look_up(tower.patch, where) is not None
    return f"{tower.prefix if own else ''}{where or 'model'}"


def look_up(node: Any, place: str) -> Any:
    """Read the value at a dotted key; None if there is none."""
    return reduce(lambda each, name: each.get(name) if isinstance(each, Mapping) else None, place.split("."), node)


def _follow(scope: Scope, path: list[str]) -> str:
    """Follow the interpolations of a path: `block.attention.n_heads` is `n_heads` if its value is `${up:n_heads}`."""
    node: Any = scope.node
    for index, step in enumerate(path):
        node = node.get(step) if isinstance(node, Mapping) else None
        if node is None:
            break
        if names := split_interpolation(node)[0]:
            source = next((each for each in names if each in scope.node), None)
            if source is None:
                break
            return _follow(scope, [source, *path[index + 1 :]])
    return ".".join(path)
