"""Represent the model that a config.json describes, with the map of its tensors."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.families.family import Family


@dataclass(frozen=True)
class Body:
    """A model that a config.json describes: `model` in Zoo's grammar; `kinds`, by tower, the family's kind of each
    layer; `fields`, the completed config; `towers`, the bodies of towers with configs of their own."""

    family: Family
    architecture: str
    model: dict[str, Any]
    kinds: dict[str, list[str]]
    fields: dict[str, Any]
    towers: Mapping[str, Body] = field(default_factory=dict)

    @property
    def keys(self) -> Mapping[str, str]:
        """The rows of the tensor map. The class's own rows come first, and replace family rows of the same names. A
        class that is only the encoder of an encoder-decoder has only the rows of that tower."""
        patch, rows = self.family.architectures[self.architecture], self.family.keys
        own = patch.get("keys") or {}
        if patch.get("alone"):
            rows = {ours[len("encoder.") :]: theirs for ours, theirs in rows.items() if ours.startswith("encoder.")}
        return {**own, **{ours: theirs for ours, theirs in rows.items() if ours not in own}}

    @property
    def prefix(self) -> str:
        """The prefix that the class puts before the names of the base model's tensors."""
        return self.family.architectures[self.architecture].get("prefix") or ""

    def full_name(self, name: str) -> str:
        """Replace `~` in a tensor's name by the class's prefix."""
        return name.replace("~", self.prefix)

    def full_names(self, read: Callable[[Body], Iterable[str]]) -> list[str]:
        """List the full names of the tensors that `read` lists for this model and for each tower with a config."""
        inner = [f"{self.prefix}{name}.{each}" for name, body in self.towers.items() for each in body.full_names(read)]
        return [*map(self.full_name, read(self)), *inner]

    def pair_names(self, read: Callable[[Body], Mapping[str, str | None]]) -> dict[str, str | None]:
        """List the full names of the pairs of tensors that `read` lists for this model and for each tower with a
        config."""
        pairs = {self.full_name(one): other and self.full_name(other) for one, other in read(self).items()}
        for tower, body in self.towers.items():
            before = f"{self.prefix}{tower}."
            inner = body.pair_names(read).items()
            pairs |= {before + one: before + other if other else other for one, other in inner}
        return pairs

    @property
    def copies(self) -> dict[str, str]:
        """The tensors that files may store as copies (`same` in the family's YAML), each mapped to its original."""
        return {one: str(other) for one, other in self.pair_names(lambda body: body.family.same).items()}

    @property
    def head(self) -> str | None:
        """The name of the head's weight (in a pair of towers, of the decoder's head); None if the family names none."""
        inner = self.towers.get("decoder")
        own = self.family.about.get("head")
        return own if own or inner is None or inner.head is None else f"{self.prefix}decoder.{inner.head}"


def lay_over(base: object, patch: object) -> Any:
    """Merge `patch` into `base` recursively. A mapping that states its `kind` replaces the base's mapping."""
    if not isinstance(base, Mapping) or not isinstance(patch, Mapping) or "kind" in patch:
        return patch
    return {**base, **{key: lay_over(base.get(key), value) for key, value in patch.items()}}


def take_encoder(model: Mapping[str, Any]) -> dict[str, Any]:
    """Extract the encoder of an encoder-decoder, as a model without a head."""
    shared = {key: value for key, value in model.items() if key not in ("start_id", "cross", "encoder", "decoder")}
    axes = [each for each in model["defaults"] if "/cross" not in each]
    own = lay_over(shared, model.get("encoder") or {})
    return {**own, "kind": "encoder", "defaults": axes, "head": {"kind": "none"}}


def combine_kinds(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Expand kinds of layer that combine parts. A kind's name may begin with a part such as `linear_` and end with a
    part such as `_nope`: `"{linear_,}dense{,_nope}"` is four kinds, of which `linear_dense_nope` is `linear_`,
    `dense` and `_nope` laid over one another. A patch that is stated under a kind's whole name is laid over last."""
    parts = sorted((name for name in layers if "_" in (name[0], name[-1])), key=len, reverse=True)
    stated: dict[str, Any] = {}
    for names, own in layers.items():
        pieces = [piece.split(",") for piece in re.split(r"[{}]", names)]
        for name in map("".join, itertools.product(*pieces) if names not in parts else ()):
            stated[name] = lay_over(stated.get(name) or {}, own or {})

    def combine(name: str) -> Any:
        last = next((part for part in parts if name.endswith(part)), "")
        first = "" if last else next((part for part in parts if f"{name}_".startswith(part)), "")
        rest = combine(f"{name}_".removeprefix(first).removesuffix("_").removesuffix(last)) if first or last else None
        patches = (layers.get(first), rest, layers.get(last), stated.get(name))
        return functools.reduce(lay_over, (patch for patch in patches if patch), {})

    return {name: combine(name) for name in stated}


def write_out_keys(node: object, base: Mapping[str, Any] | None = None) -> Any:
    """Expand rows with braces on both sides in the maps of a family's YAML: `{q,k}: ~{q,k}_proj` becomes two rows.
    `{q,k}: ~qk` stays one row, of two tensors fused in one. `{q,k}: null` removes the row `{q,k}` of the `base` if it
    has one, else the rows `q` and `k`."""
    if not isinstance(node, dict):
        return node
    rows = ("keys", "unprefixed")
    return {key: (_write_out_rows if key in rows else write_out_keys)(each, base) for key, each in node.items()}


def _write_out_rows(rows: Mapping[str, str | None], base: Mapping[str, Any] | None) -> dict[str, str | None]:
    written: dict[str, str | None] = {}
    for ours, theirs in rows.items():
        named = [] if theirs is None else _list_names(theirs)
        if theirs is None and base is not None and ours not in base:
            written |= dict.fromkeys(_list_names(ours))
        elif len(named) > 1:
            written |= _write_out_rows(dict(zip(_list_names(ours), named, strict=True)), base)
        else:
            written[ours] = theirs
    return written


def _list_names(text: str) -> list[str]:
    """Expand braces in a name: `a.{b,c}` to `a.b` and `a.c`. `{layer - 1}` is an expression, and stays."""
    found = re.search(r"\{([\w.]+(?:,[\w.]+)+)\}", text) if "{" in text else None
    return [text] if found is None else [text.replace(found[0], name, 1) for name in found[1].split(",")]


def lay_rows(base: Mapping[str, str], own: Mapping[str, str | None]) -> dict[str, str | None]:
    """Put a family's rows before those of its `base`: a tensor takes the first row that fits. A row replaces the base's
    rows for any of its tensors. A row that is conditional on another tensor (`?`) replaces none, and the base's
    conditional rows stay first."""
    placed = {name for ours in own if "?" not in ours for name in _list_names(ours)}
    kept = {ours: theirs for ours, theirs in base.items() if ours not in own and placed.isdisjoint(_list_names(ours))}
    conditional = {ours: theirs for ours, theirs in kept.items() if "?" in ours}
    return {**conditional, **own, **kept}
