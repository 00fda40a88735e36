"""Represent the draft of a family's YAML: `like` the nearest family, plus the differences."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import SequenceMatcher
from typing import Any

from zoo.families.body import lay_over
from zoo.families.expression import read_names
from zoo.families.family import HARMLESS, Family, parse_family, read_family
from zoo.porting.reference_model import Maker, Reference

LOCAL = frozenset({"layer", "pattern", "rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"})
"""Names in expressions that a config.json need not state: helpers, and fields that may always be left out."""


END = "...\n"
"""The end-of-document marker that PyYAML writes after a bare scalar."""


@dataclass(frozen=True)
class Draft:
    """A draft of a family's YAML. `assumed` are fields of config.json that the draft accepts though nothing reads them
    yet."""

    base: str
    model_type: str
    architectures: Mapping[str, Any]
    head: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    derive: Mapping[str, Any] = field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def parent(self) -> Family:
        return read_family(self.base)

    def to_node(self) -> dict[str, Any]:
        """Convert the draft to plain data, without empty keys."""
        about = {"title": self.model_type, "source": "not known to the draft"}
        about |= {"head": self.head} if self.head else {}
        node: dict[str, Any] = {"about": about, "like": self.base, "model_type": self.model_type}
        for name in (each.name for each in fields(self) if each.name not in ("base", "model_type", "head", "assumed")):
            if value := getattr(self, name):
                node[name] = list(value) if isinstance(value, tuple) else copy.deepcopy(dict(value))
        return node

    def to_family(self) -> Family:
        """Make the family that the draft describes; it accepts the `assumed` fields."""
        node = self.to_node()
        node["harmless"] = [*self.harmless, *self.assumed]
        return parse_family(self.model_type, node)

    def to_yaml(self) -> str:
        """Write the text of the file in conf/family/."""
        import yaml

        lines = []
        for name, value in self.to_node().items():
            is_deep = isinstance(value, dict) and name not in ("about", "aliases")
            flow = None if is_deep else True
            node = {name: value} if is_deep else value
            text = yaml.safe_dump(node, sort_keys=False, width=120, default_flow_style=flow, allow_unicode=True)
            lines.append(text if is_deep else f"{name}: {text.removesuffix(END).rstrip()}\n")
        return "".join(lines)

    def with_model(self, patch: Mapping[str, Any]) -> Draft:
        """Merge a patch into the draft's model. A defaults list in the patch replaces the draft's."""
        return replace(self, model=dict(lay_over(self.model, dict(patch))))

    def with_keys(self, rows: Mapping[str, Any]) -> Draft:
        return replace(self, keys={**self.keys, **rows})


def start_draft(base: str, maker: Maker, reference: Reference) -> Draft:
    """Begin a draft from a family: add the type's classes, its names of fields, and its defaults."""
    parent = read_family(base)
    prefix, bare = reference.prefix, type(getattr(reference.model, "base_model", None)).__name__
    head = {"model": {"head": {"kind": "none"}}}
    classes: dict[str, Any] = {reference.architecture: {"prefix": prefix}}
    if bare.endswith("Model") and bare.removesuffix("Model") in reference.architecture:
        classes[bare] = {"prefix": "", **head}
    draft = Draft(base, maker.model_type, classes, aliases=find_aliases(parent, maker, reference.config))
    return replace(draft, defaults=find_defaults(draft, maker), head=_find_head(reference, parent))


def _find_head(reference: Reference, parent: Family) -> str | None:
    """Find the name that the output projection's weight has in a file, or would have if it were untied."""
    module = reference.model.get_output_embeddings()
    named = {id(each): name for name, each in reference.model.named_modules()}
    name = named.get(id(module))
    return f"{name}.weight" if name else parent.about.get("head")


def find_aliases(parent: Family, maker: Maker, config: Mapping[str, Any]) -> dict[str, str]:
    """Find the type's fields that have other names in the family, by transformers' attribute_map and by similar names.
    Returns the type's name → the family's."""
    known = parent.reads | set(parent.defaults) | set(parent.aliases.values())
    pairs = {
        name: other
        for usual, own in maker.config_class.attribute_map.items()
        for name, other in ((own, usual), (usual, own))
    }
    found = {}
    for theirs, named in pairs.items():
        ours = parent.aliases.get(named, named)  # an alias of an alias would not be followed
        is_own = theirs in parent.reads and theirs not in parent.aliases
        if ours in known and not is_own and parent.aliases.get(theirs) != ours and theirs != ours:
            found[theirs] = ours
    return {**_guess_aliases(parent, config, found), **found}


LIKE = 0.7
"""Minimum similarity (0 to 1) of two names for them to be paired as one field."""


def _guess_aliases(parent: Family, config: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str]:
    """Pair fields that only the family has with fields that only the type has, by similar names and equal types, such
    as n_routed_experts with num_experts. Comparing logits later shows whether they mean the same."""
    own = {parent.aliases.get(name, name) for name in config} | set(named.values())
    wanted = [name for name in sorted(parent.reads) if name not in own | LOCAL | set(parent.aliases)]
    left = [name for name in config if name not in parent.reads | set(parent.defaults) | HARMLESS | set(named)]
    likely = sorted(
        (
            (SequenceMatcher(None, theirs, ours).ratio(), theirs, ours)
            for theirs in left
            for ours in wanted
            if ours in parent.defaults and type(parent.defaults[ours]) is type(config[theirs])
        ),
        reverse=True,
    )
    found: dict[str, str] = {}
    for ratio, theirs, ours in likely:
        if ratio >= LIKE and theirs not in found and ours not in found.values():
            found[theirs] = ours
    return found


def find_defaults(draft: Draft, maker: Maker) -> dict[str, Any]:
    """List this type's defaults that differ from the family's; null for fields that the type lacks."""
    parent = draft.parent
    aliases = {**parent.aliases, **draft.aliases}
    known = parent.reads | set(parent.defaults)
    theirs = {aliases.get(name, name): value for name, value in maker.left_out.items()}
    found = {
        name: value
        for name, value in theirs.items()
        if name in known and name in parent.defaults and parent.defaults[name] != value and not name.startswith("rope_")
    }
    for name, inner in (("default_theta", "rope_theta"), ("default_partial", "partial_rotary_factor")):
        stated = (maker.defaults.get("rope_parameters") or {}).get(inner)
        if isinstance(maker.defaults.get("rope_parameters"), Mapping) and stated != parent.defaults.get(name):
            found[name] = stated
    found = {name: value for name, value in found.items() if value is not None or parent.defaults.get(name) is not None}
    named = read_names(parent.model) | read_names(parent.derive)
    stated = {*theirs, *maker.defaults, *parent.defaults, *parent.derive, *LOCAL}
    return {**found, **dict.fromkeys(sorted(named - stated))}
