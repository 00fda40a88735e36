"""The config.json of a Spec: a family's `model`, its expressions unread, held against it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.checkpoint import family as families
from zoo.checkpoint.expression import Bindings, Expression, assembled, is_expression, known, resolved
from zoo.checkpoint.family import Body, Family, laid
from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.spec import Spec

FIRST = ("llama", "gpt2", "mistral", "mixtral", "qwen2", "qwen3", "bert", "t5")
"""Families tried before the others: what several could say is written as the best known of them."""


def config_of(spec: Any, source: Any = None, architecture: str | None = None) -> tuple[dict[str, Any], Body]:
    """The config.json that says this Spec, and the model it says.

    A model that came from a folder goes back as what it was; another as the first family that says it whole. Raises
    ConfigError with the fields that stand in the way of the nearest one.
    """
    nearest: tuple[int, str, list[str]] | None = None
    for family, name in _candidates(spec, source, architecture):
        config, body, faults = attempt(family, name, spec, source)
        if body is not None and not faults:
            return config, body
        if nearest is None or len(faults) < nearest[0]:
            nearest = (len(faults), family.name, faults)
    assert nearest is not None
    _, name, faults = nearest
    raise ConfigError(*(f"{fault}; {name}, the nearest family, cannot say so" for fault in faults[:8]))


def _candidates(spec: Any, source: Any, architecture: str | None) -> Iterator[tuple[Family, str]]:
    if source is not None:
        yield source.family, architecture or source.body.architecture
        return
    order = sorted(families.names(), key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    for name in order:
        family = families.read(name)
        for each in family.architectures:
            template = laid(family.model, family.architectures[each].get("model") or {})
            if template.get("kind", "decoder") == spec.kind and (architecture is None or each == architecture):
                yield family, each


def attempt(family: Family, architecture: str, spec: Any, source: Any = None) -> tuple[dict[str, Any], Body | None, list[str]]:
    """A config.json by which the family might say this Spec, what it says, and where the two differ."""
    template = laid(family.model, family.architectures[architecture].get("model") or {})
    start = dict(source.config) if source is not None else {}
    stated = {**family.defaults, **start}
    try:
        found, kinds = _bindings(template, spec, stated)
    except ConfigError as error:
        return {}, None, list(error.faults)
    left_out = {k: v for k, v in family.defaults.items() if v is not None and k != "default_theta"}
    config = {**left_out, **start, **assembled(found)}
    config |= {"architectures": [architecture], "model_type": config.get("model_type") or family.model_types[0]}
    required = {name: value[0] if isinstance(value, list) else value for name, value in family.requires.items()}
    config = {**required, **config}
    for name, text in family.export.items():
        config[name] = resolved(text, {**config, "pattern": kinds, "n_layers": spec.n_layers})
    try:
        body = family.body(config, "config.json")
        again = _load(body)
    except ConfigError as error:
        return config, None, list(error.faults)
    return config, body, list(dict.fromkeys(unlike(canonical(spec), canonical(again))))


def _load(body: Body) -> Any:
    from zoo.config import load

    return load(body.model)


def _bindings(template: Mapping[str, Any], spec: Any, stated: dict[str, Any]) -> tuple[Bindings, list[str]]:
    """Fields that would make the template this Spec, and the family's kind of each layer."""
    from zoo import grammar
    from zoo.config.model import compose_model

    every = ["layer", *(name for name in template.get("layers") or {} if name != "layer")]
    plain = {key: _boxed(value) for key, value in template.items() if key != "pattern"}
    tower_names = [name for name in ("encoder", "decoder") if spec.kind == "encoder_decoder"]
    plain |= {"pattern": every, "n_layers": len(every)}
    for tower in tower_names:
        inner = {key: value for key, value in (plain.get(tower) or {}).items() if key != "pattern"}
        plain[tower] = {**inner, "n_layers": plain["n_layers"]}
    tree = grammar.to_tree(compose_model(plain).cfg)
    found: Bindings = {}
    kinds: list[str] = []
    if not tower_names:
        kinds = _bind_tower(tree, spec, stated, found)
        found |= _bind_counts(template, spec, kinds, stated)
        return found, kinds
    for tower in tower_names:
        kinds = _bind_tower(tree[tower], getattr(spec, tower), stated, found)
        own = {**template, **(template.get(tower) or {})}
        found |= _bind_counts(own, spec.towers()[tower], kinds, stated)
    _bind_tree({k: v for k, v in tree.items() if k not in tower_names}, spec, stated, found)
    return found, kinds


BOX = "expression"


def _boxed(node: Any) -> Any:
    """A tree in which an expression that stands for a whole node cannot be taken for the name of a choice."""
    if is_expression(node):
        return {BOX: node} if re.match(r"=\w+\(", node) else node
    if isinstance(node, Mapping):
        return {key: _boxed(value) for key, value in node.items()}
    return [_boxed(value) for value in node] if isinstance(node, list) else node


def _bind_counts(template: Mapping[str, Any], spec: Any, kinds: list[str], stated: Mapping[str, Any]) -> Bindings:
    """What the number of layers and their pattern say."""
    found: Bindings = {}
    if is_expression(template.get("n_layers")):
        found |= Expression(template["n_layers"][1:]).bind(spec.n_layers, stated)
    pattern = template.get("pattern")
    if is_expression(pattern):
        expression = Expression(pattern[1:])
        if "layer" not in expression.names():
            return {**found, **expression.bind(kinds, stated)}
        for index, kind in enumerate(kinds):
            found |= expression.bind(kind, {**stated, "layer": index})
    return found


def _bind_tower(tree: Mapping[str, Any], tower: Any, stated: dict[str, Any], found: Bindings) -> list[str]:
    _bind_tree({k: v for k, v in tree.items() if k not in ("blocks", "pattern")}, tower, stated, found)
    kinds = []
    for index, name in enumerate(tower.pattern):
        env = {**stated, **{k: v for k, v in found.items() if k.isidentifier()}, "layer": index}
        best: tuple[int, str, Bindings] | None = None
        for kind, block in tree["blocks"].items():
            bindings: Bindings = {}
            misses = _bind_tree(block, tower.blocks[name], env, bindings)
            misses += sum(1 for key, value in bindings.items() if key in found and found[key] != value)
            if best is None or misses < best[0]:
                best = (misses, kind, bindings)
        assert best is not None
        kinds.append(best[1])
        found |= {key: value for key, value in best[2].items() if found.get(key) is None or key not in found}
    return kinds


def _bind_tree(node: Any, value: Any, env: Mapping[str, Any], found: Bindings) -> int:
    """Binds what expressions of a tree say of a value; gives how often the tree says something else."""
    if isinstance(node, Mapping) and set(node) == {BOX}:
        node = node[BOX]
    if is_expression(node):
        expression = Expression(node[1:])
        value = to_dict(value)
        bindings = expression.bind(value, env)
        if not bindings:
            return sum(1 for given in known(expression.tree, env) if not _equal(given, value))
        for key, each in bindings.items():
            if isinstance(each, Mapping) and isinstance(found.get(key), Mapping):
                found[key] = {**found[key], **each}
            else:
                found.setdefault(key, each)
        return 0
    if isinstance(node, Mapping) and isinstance(value, Spec):
        own = {field.name: field for field in dataclasses.fields(value)}  # type: ignore[arg-type]
        misses = int("kind" in node and node["kind"] != value.kind)
        misses += sum(_bind_tree(node[name], getattr(value, name), env, found) for name in own if name in node)
        unsaid = [field for name, field in own.items() if name not in node and name not in IRRELEVANT]
        return misses + sum(1 for field in unsaid if getattr(value, field.name) != field.default)
    if isinstance(node, Mapping):
        return int(bool(node) and not isinstance(value, Mapping))
    return int(not _equal(node, to_dict(value)))


# ---------------------------------------------------------------- two Specs side by side


def canonical(spec: Any) -> Any:
    """A Spec as plain data in which layers stand by themselves, whatever their kinds are called."""
    node = to_dict(spec)
    for tower in [node] if "blocks" in node else [node["encoder"], node["decoder"]]:
        tower["layers"] = [tower["blocks"][name] for name in tower["pattern"]]
        del tower["blocks"], tower["pattern"]
    return node


IRRELEVANT = ("init",)
"""What is no part of an architecture: how fresh weights are drawn."""

LOSSES = ("balance_coef", "z_coef")
"""What a router adds to the objective in training: no part of a forward pass."""


def unlike(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Where two plain trees differ: a line each, layers that differ alike named once."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.get("kind") == theirs.get("kind"):
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in IRRELEVANT and key not in LOSSES:
                yield from unlike(ours.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for mine, other in zip(ours, theirs, strict=True):
            yield from unlike(mine, other, path)
    elif not _equal(ours, theirs):
        yield f"{path}: is {_short(ours)}, would be {_short(theirs)}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float | int) and isinstance(b, float | int) and not isinstance(a, bool) and not isinstance(b, bool):
        return abs(a - b) <= 1e-12 * max(abs(a), abs(b))
    return a == b


def _short(value: Any) -> str:
    text = f"kind '{value['kind']}'" if isinstance(value, Mapping) and "kind" in value else repr(value)
    return text if len(text) < 60 else text[:57] + "..."


__all__ = ["attempt", "canonical", "config_of", "unlike"]
