"""The config.json of a Spec: a family's `model`, its expressions unread, held against it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families import family as families
from zoo.families.expression import Bindings, Expression, assembled, is_expression, known, resolved
from zoo.families.family import Body, Family
from zoo.grammar import to_dict
from zoo.model.tower import Tower
from zoo.paths import conf_dir
from zoo.spec import Spec, components

FIRST = ("llama", "gpt2", "mistral", "mixtral", "qwen2", "qwen3", "bert", "t5", "gptj", "opt")
"""Families tried before the others: what several could say is written as the best known of them."""

NEAR = 4
"""How many families are held against a Spec that no likely one says, to name what stands in the way."""


def config_of(spec: Any, source: Any = None, architecture: str | None = None) -> tuple[dict[str, Any], Body]:
    """The config.json that says this Spec, and the model it says.

    A model that came from a folder goes back as what it was; another as the first family that says it whole. Raises
    ConfigError with the fields that stand in the way of the nearest one.
    """
    if source is not None:
        tried = [(0, source.family, architecture or source.body.architecture)]
    else:
        tried = sorted(_candidates(spec, architecture), key=lambda each: each[0])
    likely = sum(1 for distance, _, _ in tried if distance == 0)
    nearest: tuple[tuple[bool, int], str, list[str]] | None = None
    for _, family, name in tried[: max(likely, NEAR)]:
        config, body, faults = attempt(family, name, spec, source)
        if body is not None and not faults:
            return config, body
        rank = (body is None, len(faults))
        if nearest is None or rank < nearest[0]:
            nearest = (rank, family.name, faults)
    if nearest is None:
        raise ConfigError(
            f"kind: no family has models of kind '{spec.kind}'" + (f" as {architecture}" if architecture else "")
        )
    _, name, faults = nearest
    raise ConfigError(*(f"{fault}; {name}, the nearest family, cannot say so" for fault in faults[:8]))


def _candidates(spec: Any, architecture: str | None) -> Iterator[tuple[int, Family, str]]:
    """Every class of every family of the Spec's topology, the best known first, with how far it is by its choices."""
    parts = [spec] if isinstance(spec, Tower) else [*spec.towers().values()]
    used = {(each.axis, each.kind) for tower in parts for _, each, _ in components(tower, tower.d_model)}
    order = sorted(families.family_names(), key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    for name in order:
        family = families.read_family(name)
        for each in family.architectures:
            fits = "as" not in family.architectures[each] and architecture in (None, each)
            template = family.template(each)
            if fits and template.get("kind", "decoder") == spec.kind:
                yield _distance(template, used), family, each


def _distance(template: Mapping[str, Any], used: set[tuple[str, str]]) -> int:
    """How many of a family's choices, where they are plain, the Spec has not."""
    axes = ("attention", "block", "norm", "ffn")
    entries = [entry for entry in template.get("defaults") or [] if isinstance(entry, Mapping)]
    chosen = {axis.strip("/"): str(name) for entry in entries for axis, name in entry.items()}
    head = template.get("head")
    stated = {"head": head["kind"]} if isinstance(head, Mapping) and not is_expression(head.get("kind", "=")) else {}
    laid_over = [template, *(patch or {} for patch in (template.get("layers") or {}).values())]
    kept = (axis for axis in axes if axis in chosen and all(_plain(each.get(axis)) for each in laid_over))
    stated |= {axis: _kind_of(axis, chosen[axis]) for axis in kept}
    return sum((axis, kind) not in used for axis, kind in stated.items())


def _plain(patch: Any) -> bool:
    """Whether what is laid over a choice leaves its kind alone."""
    return patch is None or (isinstance(patch, Mapping) and "kind" not in patch)


@functools.cache
def _kind_of(axis: str, choice: str) -> str:
    """The kind that a packaged choice of an axis is."""
    text = (conf_dir() / axis / f"{choice}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^kind: (\w+)", text, re.MULTILINE)
    assert found is not None
    return found[1]


def attempt(
    family: Family, architecture: str, spec: Any, source: Any = None
) -> tuple[dict[str, Any], Body | None, list[str]]:
    """A config.json by which the family might say this Spec, what it says, and where the two differ."""
    template = family.template(architecture)
    start = dict(source.config) if source is not None else {}
    stated = {**family.defaults, **start}
    if source is not None and source.body.architecture == architecture and _load(source.body) == spec:
        return {**start, "architectures": [architecture]}, source.body, []  # still what it came from
    try:
        found, kinds = _bindings(template, spec, stated)
    except ConfigError as error:
        return {}, None, list(error.faults)
    left_out = {k: v for k, v in family.defaults.items() if v is not None and not k.startswith("default_")}
    config = {**left_out, **start, **assembled(found)}
    config |= {"architectures": [architecture], "model_type": config.get("model_type") or family.model_types[0]}
    required = {name: value[0] if isinstance(value, list) else value for name, value in family.requires.items()}
    config = {**required, **config}
    whole = {"pattern": kinds, "n_layers": spec.n_layers, "weights": _weights(spec)}
    try:
        for name, text in family.export.items():
            config[name] = resolved(text, {**family.defaults, **config, **whole})
    except (ConfigError, TypeError, KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        return {}, None, [f"{name}: does not follow from the model, {error}"]
    return config, *_read_again(family, template, config, spec)


def _read_again(
    family: Family, template: Mapping[str, Any], config: dict[str, Any], spec: Any
) -> tuple[Body | None, list[str]]:
    """What a config says, and where it differs from this Spec."""
    try:
        body = family.body(config, "config.json", _tying(family, template, spec))
        again = _load(body)
    except ConfigError as error:
        return None, list(error.faults)
    return body, list(dict.fromkeys(unlike(canonical(spec), canonical(again))))


def _tying(family: Family, template: Mapping[str, Any], spec: Any) -> dict[str, Any] | None:
    """What the file will say of the head, whatever the config does: whether there is a weight of its own in it."""
    head = next((tower.head for tower in spec.towers().values() if tower.head.kind != "none"), None)
    without = family.about.get("head") is None or (template.get("head") or {}).get("kind") == "none"
    return None if head is None or without else {"head": {"tied": head.tied}}


def _weights(spec: Any) -> list[int]:
    """Which weights each layer has, counted from 0; no two the same unless the layers share them."""
    return [spec.stack.index(layer) for layer in range(spec.n_layers)] if isinstance(spec, Tower) else []


def _load(body: Body) -> Any:
    from zoo.compose import load

    return load(body.model)


def _bindings(template: Mapping[str, Any], spec: Any, stated: dict[str, Any]) -> tuple[Bindings, Any]:
    """Fields that would make the template this Spec, and the family's kind of each layer, by tower where there are
    two."""
    from zoo import grammar
    from zoo.compose.targets import compose_model

    every = _kinds(template)
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
    both: dict[str, list[str]] = {}
    for tower in tower_names:
        both[tower] = _bind_tower(tree[tower], getattr(spec, tower), stated, found)
        own = {**template, **(template.get(tower) or {})}
        found |= _bind_counts(own, spec.towers()[tower], both[tower], stated)
    _bind_tree({k: v for k, v in tree.items() if k not in tower_names}, spec, stated, found)
    return found, both


def _kinds(template: Mapping[str, Any]) -> list[str]:
    """The kinds that a layer may be of: the model's own keys alone, "layer", where the pattern says so."""
    named, pattern = [name for name in template.get("layers") or {} if name != "layer"], template.get("pattern")
    text = pattern if isinstance(pattern, str) else repr(pattern)
    return (
        named if named and pattern is not None and re.search(r"""(["'])layer\1""", text) is None else ["layer", *named]
    )


BOX = "expression"


def _boxed(node: Any) -> Any:
    """A tree in which an expression that stands for a whole node cannot be taken for the name of a choice."""
    if is_expression(node):
        return {BOX: node} if re.match(r"=(\w+\(|\{)", node) else node
    if isinstance(node, Mapping):
        return {key: _boxed(value) for key, value in node.items()}
    return [_boxed(value) for value in node] if isinstance(node, list) else node


def _bind_counts(template: Mapping[str, Any], spec: Any, kinds: list[str], stated: Mapping[str, Any]) -> Bindings:
    """What the number of layers and their pattern say."""
    found: Bindings = {}
    if is_expression(template.get("n_layers")):
        found |= Expression(template["n_layers"][1:]).bind(spec.n_layers, stated)
    pattern = template.get("pattern")
    if isinstance(pattern, str) and is_expression(pattern):
        expression = Expression(pattern[1:])
        if "layer" not in expression.names():
            one = isinstance(expression.tree, ast.IfExp) and len(set(kinds)) == 1  # for all, rather than a list
            return {**found, **expression.bind(kinds[0] if one else kinds, stated)}
        for index, kind in enumerate(kinds):
            found |= expression.bind(kind, {**stated, "layer": index})
    return found


def _bind_tower(tree: Mapping[str, Any], tower: Any, stated: dict[str, Any], found: Bindings) -> list[str]:
    first: Bindings = {}  # what one field says, another's expression may read, whichever comes first
    _bind_tree({k: v for k, v in tree.items() if k not in ("blocks", "pattern")}, tower, stated, first)
    stated = {**stated, **{k: v for k, v in first.items() if k.isidentifier() and not isinstance(v, Mapping)}}
    _bind_tree({k: v for k, v in tree.items() if k not in ("blocks", "pattern", "position")}, tower, stated, found)
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
    _bind_tree({k: v for k, v in tree.items() if k == "position"}, tower, stated, found)  # heads are known by now
    return kinds


def _bind_tree(node: Any, value: Any, env: Mapping[str, Any], found: Bindings) -> int:
    """Binds what expressions of a tree say of a value; gives how often the tree says something else."""
    if isinstance(node, Mapping) and set(node) == {BOX}:
        node = node[BOX]
    if is_expression(node):
        expression = Expression(node[1:])
        value = to_dict(value)
        env = {**env, **{name: each for name, each in found.items() if name.isidentifier()}}  # rather than a default
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
    for name, stack in spec.towers().items():
        tower = node[name] if name else node
        tower["final_norm"] = stack.has_final_norm  # left unsaid it follows from the blocks
        tower["layers"] = [tower["blocks"][name] for name in tower["pattern"]]
        if tower.get("shared_layers"):
            tower["weights"] = [tower["pattern"].index(name) for name in tower["pattern"]]
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
        both = (
            [key for key in ours if key in theirs] if isinstance(ours, Mapping) and isinstance(theirs, Mapping) else []
        )
        for key in both:  # of two kinds: what they have in common may differ too
            if isinstance(ours[key], Mapping) and isinstance(theirs[key], Mapping):
                yield from unlike(ours[key], theirs[key], f"{path}.{key}")


def _equal(a: Any, b: Any) -> bool:
    if (
        isinstance(a, float | int)
        and isinstance(b, float | int)
        and not isinstance(a, bool)
        and not isinstance(b, bool)
    ):
        return abs(a - b) <= 1e-12 * max(abs(a), abs(b))
    return a == b


def _short(value: Any) -> str:
    text = f"kind '{value['kind']}'" if isinstance(value, Mapping) and "kind" in value else repr(value)
    return text if len(text) < 60 else text[:57] + "..."


__all__ = ["attempt", "canonical", "config_of", "unlike"]
