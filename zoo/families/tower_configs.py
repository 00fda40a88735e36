"""Read config.json files that contain a config for each tower, an encoder and a decoder. Each tower is imported, mapped
and exported by its own family. The outer family states only the fields of the pair: the start token, a head, the
widths."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError
from zoo.families.body import Body, lay_over
from zoo.untrusted.printable import quote

if TYPE_CHECKING:
    from zoo.families.family import Family

TOWERS = ("encoder", "decoder")

BARE, HEADED = ("none",), ("lm", "mlm")
"""The kinds of head of the classes that can be the encoder of a pair (BARE), and the decoder (HEADED)."""

LACKING = {
    "encoder": ("whose tokens all see one another", "an encoder's, such as 'bert'"),
    "decoder": ("with cross-attention that is read here", "'bert', 'roberta' or 'gpt2'"),
}
"""For messages, by tower: the class that a family must have to be this tower of a pair, and families that have it."""


@dataclass(frozen=True)
class TowerConfig:
    """The place of one tower's config: the `field` of config.json (`a.b` for a nested one, as in T5Gemma 2's multimodal
    encoder), and the tower's family (None: the inner config names it). `shared` fields are read from the whole config
    instead of the inner one; fields `beside` are read from the config that contains the inner one."""

    field: str
    family: Family | None = None
    shared: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def outer(self) -> str:
        """The field with the multimodal encoder's config, if that contains this tower's config; otherwise empty."""
        return self.field.rpartition(".")[0]

    def read(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Read the tower's config, completed by its fields in the whole config. Raises CheckpointError if there is
        none."""
        inner: Any = config
        around: Mapping[str, Any] = config
        for name in self.field.split("."):
            around = inner if isinstance(inner, Mapping) else {}
            inner = around.get(name)
        if not isinstance(inner, Mapping):
            raise CheckpointError(f"{where}: {self.field}: is {quote(inner)}, no config of a model (a mapping)")
        stated = {name: config[name] for name in self.shared if name in config}
        return {**inner, **stated, **{name: around[name] for name in self.beside if name in around}}

    def write(self, config: dict[str, Any], inner: Mapping[str, Any]) -> None:
        """Write the tower's config into the whole config, in place."""
        config |= {name: inner[name] for name in self.shared if name in inner}
        *outer, last = self.field.split(".")
        for name in outer:
            config[name] = dict(config.get(name) or {})
            config = config[name]
        config |= {name: inner[name] for name in self.beside if name in inner}
        elsewhere = (*self.shared, *self.beside)
        config[last] = {name: value for name, value in inner.items() if name not in elsewhere}


def find_class(family: Family, tower: str) -> str | None:
    """Find the class of a family that can be this tower of a pair: its base model as the encoder, its causal language
    model as the decoder. None if there is none."""
    heads = BARE if tower == "encoder" else HEADED
    if tower == "encoder" and family.model.get("kind") != "encoder":
        return None  # the encoder-only class of an encoder-decoder: transformers does not accept it in a pair
    for name in family.architectures:
        template = family.template(name)
        head = template.get("head")
        kind = head.get("kind", "lm") if isinstance(head, Mapping) else None
        if template.get("kind", "decoder") == tower and kind in heads:
            return name
    return None


def find_member(family: Family, tower: str) -> tuple[Family, str] | None:
    """Return a family, and its class that can be one tower of a pair. A decoder's family gets the cross-attention that
    `crossed` states. None for a family without such a class, or for a decoder's family without `crossed`."""
    name = find_class(family, tower)
    if name is None or (tower == "decoder" and not family.crossed):
        return None
    return (add_cross_attention(family) if tower == "decoder" else family), name


def add_cross_attention(family: Family) -> Family:
    """Add to a family the cross-attention that its classes have if config.json says `add_cross_attention`."""
    crossed = family.crossed
    model = lay_over(family.model, crossed.get("model") or {})
    model = {**model, "defaults": [*family.model["defaults"], {"/cross": "mha"}]}
    requires = {**family.requires, "add_cross_attention": True}
    return replace(family, model=model, requires=requires, keys={**family.keys, **crossed["keys"]})


def read_towers(
    family: Family,
    config: Mapping[str, Any],
    where: str,
    changes: Mapping[str, Any],
    find_family: Callable[[Mapping[str, Any], str], Family],
) -> dict[str, Body]:
    """Read each tower's model by its family (`find_family`), the decoder's with `changes`. Raises CheckpointError for a
    faulty config, and for a family that cannot be this tower."""
    made = {}
    for tower, stated in family.towers.items():
        inner = stated.read(config, where)
        place = f"{where}: {stated.field}"
        own, name = stated.family, None if stated.family is None else next(iter(stated.family.architectures))
        if own is None or name is None:
            named = find_family(inner, place)
            found = find_member(named, tower)
            if found is None:
                lacks, would = LACKING[tower]
                raise CheckpointError(f"{place}: model_type: {named.name!r} has no class {lacks} ({would} would do)")
            own, name = found
        made[tower] = own.body({**inner, "architectures": [name]}, place, changes if tower == "decoder" else None)
    return made


def join_models(own: dict[str, Any], towers: Mapping[str, Body]) -> dict[str, Any]:
    """Join the models of two towers into one. `own` are the whole model's keys, which may include patches of towers."""
    joined = {"kind": "encoder_decoder", **own, "defaults": []}
    for tower, body in towers.items():
        model = _name_outward(body.model)
        for entry in model.pop("defaults", []):
            joined["defaults"] += [{f"{axis}@{tower}.{axis.strip('/')}": choice} for axis, choice in entry.items()]
        model.pop("kind", None)
        if tower == "decoder":
            model["embedding"] = {"tied": None, **(model.get("embedding") or {})}
        joined[tower] = lay_over(model, own.get(tower) or {})
    return joined


def _name_outward(node: object) -> Any:
    """Copy a model, and replace each `${x}`, which is looked up from the root, by `${up:x}`, so that the model can be a
    part of another."""
    if isinstance(node, Mapping):
        return {key: _name_outward(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_name_outward(value) for value in node]
    return re.sub(r"\$\{(\w+)\}", r"${up:\1}", node) if isinstance(node, str) else node
