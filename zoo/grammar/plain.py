"""Convert Specs to plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from zoo.errors import ConfigError
from zoo.grammar.keys import TOWERS
from zoo.model.tower import Topology
from zoo.spec import Spec


def to_dict(spec: Any) -> Any:
    """Write a Spec as plain YAML data, with every kind and every field. `from_dict` gives the same Spec back."""
    if isinstance(spec, Spec):
        return {"kind": spec.kind, **{field.name: to_dict(getattr(spec, field.name)) for field in spec.fields()}}
    if isinstance(spec, Mapping):
        return {key: to_dict(value) for key, value in spec.items()}
    if isinstance(spec, tuple | list):
        return [to_dict(value) for value in spec]
    return spec


def to_body(spec: Any) -> dict[str, Any]:
    """Write a Spec as the body of a model's file, with each kind of layer spelled out. `to_spec` gives the same Spec
    back."""
    return _to_body(to_dict(spec))


def _to_body(node: Mapping[str, Any]) -> dict[str, Any]:
    if towers := {name: _to_body(node[name]) for name in TOWERS if name in node}:
        return {**node, **towers}
    kinds = {name: {"block": block} for name, block in node["blocks"].items()}
    rest = {key: value for key, value in node.items() if key != "blocks"}
    return {**rest, "n_layers": len(node["pattern"]), "layers": kinds}


def from_dict(node: Mapping[str, Any]) -> Any:
    """Read the Spec that `to_dict` wrote. Raises ConfigError with every fault, its path counted from `model`."""
    try:
        return Topology.parse(_to_tuples(node))
    except ValidationError as error:
        items = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, ('model', *item['loc'])))}: {item['msg']}" for item in items]
        raise ConfigError(*lines) from error


def _to_tuples(node: Any) -> Any:
    """Copy the data with tuples, which Specs hold, in place of lists."""
    if isinstance(node, Mapping):
        return {key: _to_tuples(value) for key, value in node.items()}
    return tuple(_to_tuples(value) for value in node) if isinstance(node, list | tuple) else node
