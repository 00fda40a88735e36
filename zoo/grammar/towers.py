"""Read one tower of a model from its YAML: its keys, its layer pattern, and the scope of each kind of layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from zoo.errors import ConfigError, did_you_mean
from zoo.grammar.hints import hint_keys
from zoo.grammar.interpolation import Scope, find_unresolvable, to_plain
from zoo.grammar.keys import BASES, KNOWN, OWN, TOWER_DEFAULTS, TOWERS
from zoo.grammar.patches import lay_patch
from zoo.grammar.pattern import get_kinds, lay_kind, read_pattern
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.head import Head, VocabularyHead
from zoo.spec.faults import describe_no_node, describe_unknown_kind


class TowerNode:
    """The YAML of one tower. `name` is "" in a model that has only one. Raises ConfigError for interpolations that
    cannot be resolved."""

    def __init__(self, name: str, root: Scope, problems: list[str], patch: object = None) -> None:
        self.name, self.root = name, root
        self.patch: dict[Any, Any] = patch if isinstance(patch, dict) else {}
        self.prefix = f"{name}." if name else ""
        self.names, found = read_pattern(root)
        self.scopes = {kind: lay_kind(root, kind, found) for kind in dict.fromkeys(self.names)}
        unresolvable = self._find_unresolvable()
        if name:  # a null in the tower's patch has removed its key, so that interpolations of it fail
            unresolvable += find_unresolvable(root)
        problems += [self.prefix + fault for fault in found]
        if unresolvable:
            raise ConfigError(*problems, *(self.prefix + fault for fault in unresolvable))
        self.asked = set().union(*(scope.take_reads() for scope in (root, *self.scopes.values())))
        """Names in any interpolation of the tower."""

    def _find_unresolvable(self) -> list[str]:
        """List the interpolations in kinds of layer that cannot be resolved. Kinds with the same fault share a line."""
        kinds, found = get_kinds(self.root), {}
        for kind, scope in self.scopes.items():
            for fault in find_unresolvable(scope) if kind in kinds else ():
                found.setdefault(fault, []).append(f"layers.{kind}")
        more = {fault: f"; so in {', '.join(places[1:])}" if places[1:] else "" for fault, places in found.items()}
        return [f"{places[0]}: {fault}{more[fault]}" for fault, places in found.items()]

    def read(self, problems: list[str], asked: set[str]) -> tuple[dict[str, Any], set[str]]:
        """Read the tower as plain data, and the names that its components look up. Adds to `problems` the axes with an
        unknown kind, the faulty fields of axes that no layer reads, and the keys of layer patches that their layers do
        not read."""
        # axes that no layer reads are checked too: a model may state them for swaps
        faults = ((axis, _describe_node(self.root, axis)) for axis in BASES)
        problems += [f"{self.prefix if axis in self.patch else ''}{axis}: {fault}" for axis, fault in faults if fault]
        tree = read_fields(self.root, OWN)
        for part in ("embedding", "head"):
            inner = tree.setdefault(part, {})
            if isinstance(inner, dict) and not is_task_head(part, inner):
                stated = tree.get("vocab_size")  # a fault in it is reported once, as the model's own
                number = int(stated) if isinstance(stated, str) and stated.isdecimal() and len(stated) < 20 else stated
                inner.setdefault("vocab_size", number if type(number) is int and number > 0 else 1)
        own = self.root.take_reads()
        blocks, read = self.read_blocks()
        problems += [self.prefix + fault for fault in self._find_unread(read, asked)]
        names = own.union(*read.values())
        problems += self._find_idle_faults(names)
        return {**tree, "blocks": blocks, "pattern": tuple(self.names)}, names

    def read_blocks(self) -> tuple[dict[str, Any], dict[str, set[str]]]:
        """Read each kind of layer as plain data, and the names that it looks up."""
        blocks, read = {}, {}
        for kind, scope in self.scopes.items():
            blocks[kind], read[kind] = scope.read("block"), scope.take_reads()
        return blocks, read

    def list_unread(self, read: Mapping[str, set[str]]) -> list[tuple[str, str]]:
        """List the keys of layer patches that their layers do not read, by kind of layer."""
        patches = {kind: get_kinds(self.root).get(kind) for kind in read}
        return [
            (kind, str(key))
            for kind, patch in patches.items()
            for key in (patch if isinstance(patch, dict) else ())
            if key not in read[kind] and key != "block"
        ]

    def _find_idle_faults(self, read: set[str]) -> list[str]:
        """List the faults in stated fields of axes that no layer reads. The model's Spec, which does not contain these
        axes, cannot report them."""
        faults = []
        for axis in (each for each in BASES if each not in read | OWN | {"block"}):
            node = self.root.get(axis)
            if not (isinstance(node, Scope) and node.is_mapping):
                continue
            try:
                BASES[axis].parse(node.to_plain())
            except ValidationError as error:
                where = f"{self.prefix if axis in self.patch else ''}{axis}"
                stated = [item for item in error.errors(include_url=False) if {*item["loc"][:1]} & node.node.keys()]
                faults += [f"{'.'.join(map(str, (where, *item['loc'])))}: {item['msg']}" for item in stated]
        self.root.take_reads()  # these fields were looked at for their faults alone
        return faults

    def _find_unread(self, read: Mapping[str, set[str]], asked: set[str]) -> list[str]:
        """List the keys of a layer patch that its layers do not read: they would change nothing."""
        faults = []
        for kind, key in self.list_unread(read):
            if key in KNOWN | asked and any(_describe_node(self.scopes[kind], axis) for axis in BASES):
                continue  # what a component of an unknown kind would read is unknown
            why = "nothing in these layers reads it (leave it out, or choose what does)"
            if key not in KNOWN | asked:
                hints = hint_keys({key: get_kinds(self.root)[kind][key]}, self.scopes[kind].node, f"layers.{kind}.")
                why = hints.get(key) or f"no such key{did_you_mean(key, KNOWN | read[kind])}"
            faults.append(f"layers.{kind}.{key}: {why}")
        return faults


def _describe_node(scope: Scope, axis: str) -> str:
    """Describe the fault of an axis whose node is no component of a known kind; "" for one without a fault."""
    node, base = scope.get(axis), BASES[axis]
    if not (isinstance(node, Scope) and node.is_mapping):
        return "" if node is None else describe_no_node(base, to_plain(node)).message()
    kind = node.read("kind")
    return "" if kind in base.kinds else describe_unknown_kind(base, kind).message()


def is_task_head(part: str, node: Mapping[str, Any]) -> bool:
    """Tell whether a part of a tower is a head without a vocabulary, such as a classifier."""
    choice = Head.kinds.get(node.get("kind", Head.default)) if part == "head" else None
    return choice is not None and not issubclass(choice, VocabularyHead)


def split_towers(root: Scope, problems: list[str]) -> list[TowerNode]:
    """Split a model into its towers: the model itself, named "", unless it is an encoder-decoder. Raises ConfigError
    for interpolations that cannot be resolved."""
    if root.read("kind") != EncoderDecoder.kind:
        return [TowerNode("", root, problems)]
    shared = {key: value for key, value in root.node.items() if key not in TOWERS}
    scopes = {}
    for name in TOWERS:
        laid = lay_patch(
            lay_patch(shared, TOWER_DEFAULTS[name], name, problems), root.node.get(name) or {}, name, problems
        )
        scopes[name] = Scope({key: value for key, value in laid.items() if value is not None})
    return [TowerNode(name, scope, problems, root.node.get(name)) for name, scope in scopes.items()]


def read_fields(root: Scope, fields: set[str]) -> dict[str, Any]:
    """Read the model's kind and its `fields` as plain data."""
    return {str(key): root.read(key) for key in root.node if key in fields or key == "kind"}
