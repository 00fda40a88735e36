"""The model that a config.json describes, with the rows of the map of its tensors."""

from __future__ import annotations

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
