"""Pair a family's `model` with a Spec, field by field, and find the fields of a config.json from the pairs.

Each pair, a FieldRow, has an expression over a config's fields and the Spec's value:

    vocab_size                =vocab_size                                   32000
    attention.n_kv_heads      =num_key_value_heads or num_attention_heads   8
    activation                =act(hidden_act)                              {kind: silu}

Import evaluates the expression; `bind` finds fields with which the expression has the Spec's value.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.likeness import is_equal
from zoo.families.binding import bind, try_evaluate
from zoo.families.expression import Bindings, Expression, is_expression
from zoo.grammar import to_dict, to_tree
from zoo.spec import Node, Spec

if TYPE_CHECKING:
    from zoo.model.tower import Topology, Tower

LENDER = "kv_from"
"""The field of an attention that names the kind of layer whose keys it reads."""


@dataclass(frozen=True)
class FieldRow:
    """One field of a Spec: `stated` is the family's expression or constant for the field, `value` the Spec's value."""

    stated: Any
    value: Any

    def bind_into(self, found: Bindings, known: Mapping[str, Any]) -> bool:
        """Add to `found` the config fields with which the expression gives `value`; fields already in `found` are kept.
        Returns False if no fields give `value`."""
        if not is_expression(self.stated):
            return is_equal(self.stated, self.value)
        tree, env = Expression(self.stated[1:]).tree, {**known, **_named(found)}
        bindings = bind(tree, self.value, env)
        for key, each in bindings.items():
            if isinstance(each, Mapping) and isinstance(found.get(key), Mapping):
                found[key] = {**found[key], **each}
            else:
                found.setdefault(key, each)
        return bool(bindings) or all(is_equal(given, self.value) for given in try_evaluate(tree, env))


def find_fields(template: Mapping[str, Any], spec: Topology, stated: Mapping[str, Any]) -> tuple[Bindings, Any]:
    """Find the config fields with which a family's `model` describes a Spec, and the family's kind of each layer.

    The kinds are a list, or a list per tower if there are two towers. `stated` are fields known beforehand.
    """
    stated_kind = template.get("kind")
    template = {**template, "kind": spec.kind} if is_expression(stated_kind) else template
    tree = _compose_unevaluated(template, spec)
    towers = spec.towers()
    found: Bindings = {}
    kinds: dict[str, list[str]] = {}
    for _ in range(2):  # a row may need a field that a later row gives
        known, found = {**stated, **_named(found)}, {}
        FieldRow(stated_kind, spec.kind).bind_into(found, known)  # first: other fields may depend on the kind
        for name, tower in towers.items():
            kinds[name] = _bind_tower(tree[name] if name else tree, tower, known, found)
            own = {**template, **(template.get(name) or {})} if name else template
            found |= _bind_pattern(own, kinds[name], known)
        if "" not in towers:
            for row in pair_fields({key: value for key, value in tree.items() if key not in towers}, spec):
                row.bind_into(found, known)
    return found, kinds.get("", kinds)


def pair_fields(node: object, value: object) -> Iterator[FieldRow]:
    """Pair a family's composed template (`node`) with the Spec of the same component (`value`): yield a FieldRow for
    each field, including those of inner components.

    A field that the template leaves out is paired with its default, except `init`, which is skipped. For the field
    LENDER the pair says only whether each side sets it.
    """
    if isinstance(node, Mapping) and BOX in node:  # composing may have added keys next to BOX, as a head's vocab_size
        node = node[BOX]
    if isinstance(value, Node) and value.word and not _spells_out(node, value):
        value = getattr(value, value.word)
    if isinstance(node, Mapping) and isinstance(value, Spec):
        if "kind" in node:
            yield FieldRow(node["kind"], value.kind)
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            if field.name == LENDER:  # the family and the Spec may name the kind differently
                yield FieldRow(node.get(LENDER) is not None, getattr(value, LENDER) is not None)
            elif field.name in node:
                yield from pair_fields(node[field.name], getattr(value, field.name))
            elif field.name != "init":
                yield FieldRow(field.default, getattr(value, field.name))
    elif not isinstance(node, Mapping) or (node and not isinstance(value, Mapping)):
        yield FieldRow(node, to_dict(value))


def _spells_out(node: object, value: Node) -> bool:
    """Whether a template states a node's fields, rather than only the value of its main field."""
    if isinstance(node, Mapping):
        return "kind" not in node
    return isinstance(node, str) and f'"{value.word}":' in node


def _bind_tower(tree: Mapping[str, Any], tower: Tower, known: Mapping[str, Any], found: Bindings) -> list[str]:
    """Bind the rows of a tower and its layers. Returns for each layer the family's kind with the fewest mismatches."""
    for row in pair_fields({k: v for k, v in tree.items() if k not in ("blocks", "pattern")}, tower):
        row.bind_into(found, known)
    paired = {
        (kind, name): list(pair_fields(block, tower.blocks[name]))
        for kind, block in tree["blocks"].items()
        for name in tower.blocks
    }
    kinds = []
    for layer, name in enumerate(tower.pattern):
        env = {**known, **_named(found), "layer": layer}
        tried = [(kind, *_bind_block(paired[kind, name], env, found)) for kind in tree["blocks"]]
        kind, _, bindings = min(tried, key=lambda each: each[1])
        kinds.append(kind)
        found |= {key: value for key, value in bindings.items() if found.get(key) is None}
    return kinds


def _bind_block(rows: Sequence[FieldRow], env: Mapping[str, Any], found: Bindings) -> tuple[int, Bindings]:
    """Bind the rows of one layer. Returns the number of rows that fail or contradict `found`, and the fields bound."""
    bindings: Bindings = {}
    misses = sum(not row.bind_into(bindings, env) for row in rows)
    return misses + sum(key in found and found[key] != value for key, value in bindings.items()), bindings


def _bind_pattern(template: Mapping[str, Any], kinds: list[str], known: Mapping[str, Any]) -> Bindings:
    """Find the fields that give the number of layers and the kind of each."""
    found: Bindings = {}
    if is_expression(template.get("n_layers")):
        found |= bind(Expression(template["n_layers"][1:]).tree, len(kinds), known)
    if not is_expression(template.get("pattern")):
        return found
    expression = Expression(template["pattern"][1:])
    if "layer" in expression.names():
        for layer, kind in enumerate(kinds):
            found |= bind(expression.tree, kind, {**known, "layer": layer})
        return found
    is_one_name = isinstance(expression.tree, ast.IfExp) and len(set(kinds)) == 1  # one kind for all, not a list
    return found | bind(expression.tree, kinds[0] if is_one_name else kinds, known)


def _named(found: Bindings) -> Bindings:
    """Keep the bindings of whole fields, and drop those of list entries and inner fields."""
    return {name: value for name, value in found.items() if name.isidentifier()}


# ---------------------------------------------------------------- a family's `model` with its expressions


BOX = "expression"


def _compose_unevaluated(template: Mapping[str, Any], spec: Topology) -> dict[str, Any]:
    """Compose a family's `model` with its expressions unevaluated: interpolation copies each expression to every field
    that it determines. Each kind of layer gets one block."""
    from zoo.compose.targets import compose_model

    kinds = _list_kinds(template)
    plain = {key: _box(value) for key, value in template.items()} | {"pattern": kinds, "n_layers": len(kinds)}
    for tower in spec.towers():
        if tower:
            inner = {key: value for key, value in (plain.get(tower) or {}).items() if key != "pattern"}
            plain[tower] = {**inner, "n_layers": len(kinds)}
    return to_tree(compose_model(plain).cfg)


def _list_kinds(template: Mapping[str, Any]) -> list[str]:
    """List a family's kinds of layer. The kind "layer" has no patch; it is left out if the pattern never names it."""
    kinds, pattern = [name for name in template.get("layers") or {} if name != "layer"], template.get("pattern")
    text = pattern if isinstance(pattern, str) else repr(pattern)
    unnamed = kinds and pattern is not None and re.search(r"""(["'])layer\1""", text) is None
    return kinds if unnamed else ["layer", *kinds]


def _box(node: Any) -> Any:
    """Wrap each expression that gives a whole node; a bare text would be taken for the name of a choice."""
    if is_expression(node):
        return {BOX: node} if re.match(r"=(\w+\(|\{)", node) else node
    if isinstance(node, Mapping):
        return {key: _box(value) for key, value in node.items()}
    return [_box(value) for value in node] if isinstance(node, list) else node
