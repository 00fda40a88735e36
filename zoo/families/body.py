"""The model that a config.json describes, with the rows of the map of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.families.family import Family


@dataclass(frozen=True)
class Body:
    """A model that a config.json describes: in our grammar, with the family's name for the kind of each layer."""

    family: Family
    architecture: str
    model: dict[str, Any]
    kinds: dict[str, list[str]]
    fields: dict[str, Any]
    towers: Mapping[str, Body] = field(default_factory=dict)

    @property
    def keys(self) -> Mapping[str, str]:
        """The rows of the map: those of the class come first, in place of the family's."""
        own = self.family.architectures[self.architecture].get("keys") or {}
        return {**own, **{ours: theirs for ours, theirs in self.family.keys.items() if ours not in own}}

    @property
    def prefix(self) -> str:
        """The prefix that the class puts before the names of the base model's tensors."""
        return self.family.architectures[self.architecture].get("prefix") or ""

    def full_name(self, name: str) -> str:
        """A tensor's name in a file of this class, from a name in which `~` is the prefix."""
        return name.replace("~", self.prefix)

    def full_names(self, read: Callable[[Body], Iterable[str]]) -> list[str]:
        """The full names of what `read` lists of this model, and of each tower with a config of its own."""
        inner = [f"{self.prefix}{name}.{each}" for name, body in self.towers.items() for each in body.full_names(read)]
        return [*map(self.full_name, read(self)), *inner]

    def pair_names(self, read: Callable[[Body], Mapping[str, str | None]]) -> dict[str, str | None]:
        """The full names of pairs of tensors, as `full_names` has them."""
        pairs = {self.full_name(one): other and self.full_name(other) for one, other in read(self).items()}
        for tower, body in self.towers.items():
            before = f"{self.prefix}{tower}."
            inner = body.pair_names(read).items()
            pairs |= {before + one: before + other if other else other for one, other in inner}
        return pairs

    @property
    def copies(self) -> dict[str, str]:
        """The tensors that files may hold twice, and their originals: `same` of the family."""
        return {one: str(other) for one, other in self.pair_names(lambda body: body.family.same).items()}

    @property
    def head(self) -> str | None:
        """The weight of the head, where it is one of its own."""
        inner = self.towers.get("decoder")
        own = self.family.about.get("head")
        return own if own or inner is None or inner.head is None else f"{self.prefix}decoder.{inner.head}"


def lay_over(base: Any, patch: Any) -> Any:
    """Lay `patch` over `base`, mapping by mapping. A mapping that names its kind replaces the other."""
    if not isinstance(base, Mapping) or not isinstance(patch, Mapping) or "kind" in patch:
        return patch
    return {**base, **{key: lay_over(base.get(key), value) for key, value in patch.items()}}


def write_out_keys(node: Any, base: Mapping[str, Any] | None = None) -> Any:
    """Write out the rows of each map in a family's YAML that stand for several: `{q,k}: ~{q,k}_proj` are two rows;
    `{q,k}: ~qk` is one, of two tensors fused in one. `{q,k}: null` leaves out that row of the `base`, or both; without
    a `base`, that row."""
    if not isinstance(node, dict):
        return node
    return {
        key: _write_out_rows(each, base) if key == "keys" else write_out_keys(each, base) for key, each in node.items()
    }


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
    """List the names that braces stand for: `a.{b,c}` for `a.b` and `a.c`. `{layer - 1}` is an expression."""
    found = re.search(r"\{([\w.]+(?:,[\w.]+)+)\}", text) if "{" in text else None
    return [text] if found is None else [text.replace(found[0], name, 1) for name in found[1].split(",")]


def lay_rows(base: Mapping[str, str], own: Mapping[str, str | None]) -> dict[str, str | None]:
    """Lay a family's rows over those of another. A row takes the place of those that are of one of its tensors too; a
    row that asks for a tensor beside it (`?`) stands by itself."""
    placed = {name for ours in own if "?" not in ours for name in _list_names(ours)}
    kept = {ours: theirs for ours, theirs in base.items() if ours in own or placed.isdisjoint(_list_names(ours))}
    return {**kept, **own}
