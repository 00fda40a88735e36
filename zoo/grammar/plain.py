"""Convert Specs to plain data, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from zoo.errors import ConfigError
from zoo.grammar.keys import TOWERS
from zoo.model.tower import Topology
from zoo.spec import Node, Spec


def to_dict(spec: Any) -> Any:
    """Write a Spec as plain YAML data, with every kind and every field. `from_dict` gives the same Spec back."""
    return _write(spec, lambda value, default: False)


def to_essentials(spec: Spec) -> Any:
    """Write a Spec as `to_dict` does, without the fields that have their default, if this default is None, False, 0, 1,
    empty or a Node.

    Hashes are made of this: different Specs give different data, and a Spec's data stays the same when its class gains
    a field that is off by default."""
    return _write(spec, _is_off)


def _write(spec: Any, leaves_out: Callable[[object, object], bool]) -> Any:
    """Write a Spec as plain data without the fields that `leaves_out` selects by value and default."""
    if isinstance(spec, Spec):
        fields = ((field.name, getattr(spec, field.name), field.default) for field in spec.fields())
        told = {name: _write(value, leaves_out) for name, value, default in fields if not leaves_out(value, default)}
        return told if isinstance(spec, Node) else {"kind": spec.kind, **told}
    if isinstance(spec, Mapping):
        return {key: _write(value, leaves_out) for key, value in spec.items()}
    if isinstance(spec, tuple | list):
        return [_write(value, leaves_out) for value in spec]
    return spec


def _is_off(value: object, default: object) -> bool:
    """Tell whether a field has its default and that default changes nothing: a factor of 1, a window of None …"""
    off = isinstance(value, Node) or value is None or value in (False, 0, 1, (), {})
    return value is not True and value == default and off


def to_body(spec: Topology) -> dict[str, Any]:
    """Write a Spec as the data of a model's YAML, each kind of layer in full. `to_spec` gives the same Spec back."""
    return _to_body(to_dict(spec))


def _to_body(node: Mapping[str, Any]) -> dict[str, Any]:
    if towers := {name: _to_body(node[name]) for name in TOWERS if name in node}:
        return {**node, **towers}
    kinds = {name: {"block": block} for name, block in node["blocks"].items()}
    rest = {key: value for key, value in node.items() if key != "blocks"}
    return {**rest, "n_layers": len(node["pattern"]), "layers": kinds}


def from_dict(node: Mapping[str, Any]) -> Any:
    """Read a Spec from the data that `to_dict` wrote. Raises ConfigError with every fault, its path starting with
    `model`."""
    try:
        return Topology.parse(_to_tuples(node))
    except ValidationError as error:
        items = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, ('model', *item['loc'])))}: {item['msg']}" for item in items]
        raise ConfigError(*lines) from error


def _to_tuples(node: object) -> Any:
    """Copy the data with lists replaced by tuples, which Specs hold."""
    if isinstance(node, Mapping):
        return {key: _to_tuples(value) for key, value in node.items()}
    return tuple(_to_tuples(value) for value in node) if isinstance(node, list | tuple) else node
