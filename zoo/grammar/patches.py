"""Lay patches: mappings of the model's own keys that change a tower or a kind of layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.grammar.keys import TOWERS


def lay_patch(base: Mapping[Any, Any], patch: object, path: str, problems: list[str]) -> dict[Any, Any]:
    """Lay `patch` over `base`, mapping by mapping. A patch that is no mapping is added to `problems` under `path`.

    base                          patch                        result
    norm: {kind: rms, eps: 1}     norm: {eps: 2}               norm: {kind: rms, eps: 2}
    norm: {kind: rms, eps: 1}     norm: {kind: rms, bias: no}  norm: {kind: rms, eps: 1, bias: no}
    norm: {kind: rms, eps: 1}     norm: {kind: layer}          norm: {kind: layer}, replaced whole
    norm: {kind: rms, eps: 1}     norm: null                   norm: null

    Two similar merges differ on purpose. In a family's YAML (`zoo.families`) a node that states its kind replaces the
    old one whole, in the second row too. Hydra merges overrides and replaces nothing; therefore leftover fields of the
    old kind are dropped afterwards (`zoo.grammar.leftovers`).
    """
    if not isinstance(patch, Mapping):
        problems.append(f"{path}: is {patch!r}, not a mapping of the model's keys")
        return dict(base)
    merged = dict(base)
    for key, value in patch.items():
        old = merged.get(key)
        same = isinstance(value, Mapping) and isinstance(old, Mapping) and value.get("kind") in (None, old.get("kind"))
        merged[key] = lay_patch(old, value, f"{path}.{key}", problems) if same else value  # type: ignore[arg-type]
    return merged


def list_patches(body: Mapping[Any, Any]) -> Iterator[tuple[str, dict[Any, Any], Mapping[Any, Any]]]:
    """Yield the path of each patch in a model's YAML, the patch, and the keys that it changes: the kinds of layer, then
    each tower and its kinds of layer. Values that are not mappings are left out."""
    towers = [(f"{name}.", patch) for name in TOWERS if isinstance(patch := body.get(name), dict)]
    for prefix, scope in [("", body), *towers]:
        if prefix:
            yield prefix[:-1], scope, body
        layers = scope.get("layers")
        for name, patch in layers.items() if isinstance(layers, dict) else ():
            if isinstance(patch, dict):
                yield f"{prefix}layers.{name}", patch, {**body, **scope}
