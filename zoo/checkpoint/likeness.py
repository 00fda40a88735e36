"""Compare two Specs field by field and layer by layer, ignoring the names of their kinds of layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zoo.grammar import to_dict
from zoo.model.lending import find_sources
from zoo.spec import shares_part

if TYPE_CHECKING:
    from zoo.model.tower import Topology

IRRELEVANT = ("init", "balance_coef", "z_coef")
"""Fields that do not change a forward pass: initialisation, and the coefficients of a router's auxiliary losses."""


def list_spec_differences(ours: Topology, theirs: Topology) -> list[str]:
    """List the fields in which two Specs differ, a line each; layers with the same difference share a line."""
    return list(dict.fromkeys(_differences(write_out_layers(ours), write_out_layers(theirs))))


def write_out_layers(spec: Any) -> dict[str, Any]:
    """Turn a Spec into plain data with a list of all its layers in place of kinds and a pattern."""
    node = to_dict(spec)
    for name, stack in spec.towers().items():
        tower = node[name] if name else node
        tower["final_norm"] = stack.has_final_norm  # where the Spec leaves it out, it follows from the blocks
        sources = find_sources(stack.blocks, stack.pattern)
        tower["layers"] = [_number(tower["blocks"][name], sources.get(i)) for i, name in enumerate(tower["pattern"])]
        if stack.shared_layers:
            tower["weights"] = list(stack.layer_weights)
        shared = {name for name, block in stack.blocks.items() if shares_part(block, stack.d_model)}
        if shared:
            tower["common"] = [tower["pattern"].index(name) if name in shared else None for name in tower["pattern"]]
        del tower["blocks"], tower["pattern"]
    return node


def _number(block: dict[str, Any], source: int | None) -> dict[str, Any]:
    """Replace the kind of layer that `kv_from` names by the index of the layer whose keys are read."""
    return block if source is None else {**block, "attention": {**block["attention"], "kv_from": source}}


def is_equal(a: Any, b: Any) -> bool:
    """Whether two plain values are equal; numbers may differ by a relative 1e-12."""
    numbers = all(isinstance(each, float | int) and not isinstance(each, bool) for each in (a, b))
    return abs(a - b) <= 1e-12 * max(abs(a), abs(b)) if numbers else a == b


def _differences(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.get("kind") == theirs.get("kind"):
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in IRRELEVANT:
                yield from _differences(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for mine, other in zip(ours, theirs, strict=True):
            yield from _differences(mine, other, path)
    elif not is_equal(ours, theirs):
        yield f"{path}: is {_short(ours)}, would be {_short(theirs)}"
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):  # kinds differ; fields of both may differ too
            for key in ours:
                if isinstance(ours[key], Mapping) and isinstance(theirs.get(key), Mapping):
                    yield from _differences(ours[key], theirs[key], f"{path}.{key}")


def _short(value: object) -> str:
    text = f"kind '{value['kind']}'" if isinstance(value, Mapping) and "kind" in value else repr(value)
    return text if len(text) < 60 else text[:57] + "..."
