"""From a model's YAML node to its Spec: interpolations resolved, layer kinds expanded, every fault found at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from zoo.errors import ConfigError, did_you_mean
from zoo.model.tower import Decoder, EncoderDecoder, Topology
from zoo.spec import Spec

AXES = ("attention", "position", "norm", "block", "ffn", "router", "activation", "cross")
"""Axes that a model states at its top level; other nodes reach them by interpolation."""

STRUCTURE = ("about", "kind", "n_layers", "layers", "pattern")
"""Top-level keys that are read here and are no field of a Spec."""

TOWERS = ("encoder", "decoder")
"""Keys of an encoder-decoder that are patches of the model's own keys, for one of its two towers."""

OWN = {field.name for field in Decoder.fields()} - {"blocks"}
BOTH = {field.name for field in EncoderDecoder.fields()} - set(TOWERS)

APART: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder", "head": {"kind": "none"}, "cross": None, "prefix_lm": None},
    "decoder": {"kind": "decoder", "embedding": {"tied": "encoder.embedding.tokens"}, "pooler": None},
}
"""What an encoder-decoder's towers are unless their patches say otherwise: one table of tokens, a head on the
decoder."""

MOST_LAYERS = 100_000
"""Layers of a tower at most. A pattern is a list with the name of each layer, so a typing error could fill memory."""

_reads: set[str] = set()
"""Names that interpolations asked for while a node resolved (see `to_spec`)."""


def register_resolvers() -> None:
    """`${up:a,b}`: the nearest enclosing `a`, else `b`. `${or:a,literal}`: the nearest enclosing `a`, else the
    literal."""
    OmegaConf.register_new_resolver("up", _up, replace=True, use_cache=False)
    OmegaConf.register_new_resolver("or", _or, replace=True, use_cache=False)


def _up(*names: str, _parent_: Any) -> Any:
    for name in names:
        found, value = _nearest(name, _parent_)
        if found:
            return value
    raise ConfigError(f"{names[0]}: is missing; {_place(_parent_)} needs it (state it at the model's top level)")


def _or(name: str, literal: Any, *, _parent_: Any) -> Any:
    found, value = _nearest(name, _parent_)
    return value if found else literal


def _nearest(name: str, node: Any) -> tuple[bool, Any]:
    """Looks for a key outwards, from the node that holds the asking component."""
    _reads.add(name)
    scope = node._get_parent()
    while scope is not None:
        if isinstance(scope, DictConfig) and name in scope:
            return True, scope[name]
        scope = scope._get_parent()
    return False, None


def _place(node: Any) -> str:
    return node._get_full_key(None) or "the model"


def to_spec(node: DictConfig, touched: Iterable[str] = ()) -> Any:
    """The Spec that a model node describes. Raises ConfigError with every fault and its YAML path.

    `touched` are the keys the user overrode: one that nothing reads is refused, so that no wish is dropped silently.
    """
    root = _root(node)
    problems: list[str] = []
    towers = [_Tower(name, scope, problems, root.get(name)) for name, scope in _towers(root, problems).items()]
    asked = set(_reads)
    _reads.clear()
    trees = {tower.name: tower.tree(problems, asked) for tower in towers}
    problems += _strangers(root, asked, towers)
    problems += [f"{key}: nothing in this model reads it (leave it out)" for key in touched if _idle(key, asked)]
    tree = trees.get("") or {**{str(key): _plain(root, str(key)) for key in root if key in BOTH | {"kind"}}, **trees}
    try:
        spec = Topology.parse(tree)
    except ValidationError as error:
        problems += _placed(error, {tower.name: tower for tower in towers})
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return spec


def to_tree(node: DictConfig) -> dict[str, Any]:
    """The plain data that `to_spec` makes a Spec of, values unread: what stands in the model's file stands here, at
    every place that asks for it."""
    root = _root(node)
    trees = {name: _Tower(name, scope, []).tree([], set()) for name, scope in _towers(root, []).items()}
    return trees.get("") or {**{str(key): _plain(root, str(key)) for key in root if key in BOTH | {"kind"}}, **trees}


def _root(node: DictConfig) -> DictConfig:
    """The node as a root of its own. Raises ConfigError where an interpolation leads nowhere."""
    register_resolvers()
    _reads.clear()
    root = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    assert isinstance(root, DictConfig)
    missing = _unresolvable(root)
    if missing:
        raise ConfigError(*missing)
    return root


def _towers(root: DictConfig, problems: list[str]) -> dict[str, DictConfig]:
    """The model's keys as each of its towers sees them; the model itself, under "", where it is one."""
    if root.get("kind") != EncoderDecoder.kind:
        return {"": root}
    raw = OmegaConf.to_container(root, resolve=False)
    assert isinstance(raw, dict)
    patches = {name: raw.pop(name, None) or {} for name in TOWERS}
    found = {}
    for name, patch in patches.items():
        laid = _patched(_patched(raw, APART[name], name, problems), patch, name, problems)
        found[name] = OmegaConf.create({key: value for key, value in laid.items() if value is not None})
    return found


class _Tower:
    """A stack of layers as the YAML describes it: its keys, the pattern of its layers, and what each kind of them
    sees."""

    def __init__(self, name: str, root: DictConfig, problems: list[str], patch: Any = None) -> None:
        self.name, self.root = name, root
        self.patch = patch if isinstance(patch, DictConfig) else OmegaConf.create({})
        self.prefix = f"{name}." if name else ""
        self.names, found = _pattern(root)
        self.scopes = {kind: _scope(root, kind, found) for kind in dict.fromkeys(self.names)}
        lost = [fault for kind in self.scopes if kind in _kinds(root) for fault in _lost(kind, self.scopes[kind])]
        problems += [self.prefix + fault for fault in found]
        if lost:
            raise ConfigError(*problems, *(self.prefix + fault for fault in lost))

    def tree(self, problems: list[str], asked: set[str]) -> dict[str, Any]:
        """The node of this tower. What nothing in it reads is added to `problems`."""
        tree, read = _tree(self.root, self.scopes, self.names)
        problems += [self.prefix + fault for fault in _unread(self.root, read, asked)]
        return tree


def _unresolvable(root: DictConfig) -> list[str]:
    """Interpolations that lead nowhere, one line each."""
    found: dict[str, None] = {}
    for node in _leaves(root):
        try:
            node._dereference_node()
        except OmegaConfBaseException as error:
            found[_reason(error) or f"{_place(node)}: {str(error).splitlines()[0]}"] = None
    return list(found)


def _lost(name: str, scope: DictConfig) -> list[str]:
    """The same for what a kind of layer changes."""
    return [f"layers.{name}: {fault}" for fault in _unresolvable(scope)]


def _kinds(root: DictConfig) -> DictConfig:
    """The named kinds of layer; none where `layers` is no mapping, which `_pattern` reports."""
    layers = root.get("layers")
    return layers if isinstance(layers, DictConfig) else OmegaConf.create({})


def _reason(error: BaseException) -> str | None:
    """What a resolver of ours said, if one did; OmegaConf wraps it in errors of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else cause.faults[0]


def _leaves(node: Any) -> Iterable[Any]:
    """Every node that is a value or an interpolation, named layer kinds apart (they resolve in their own scope)."""
    for key in list(node):
        child = node._get_node(key)
        if child is None or key == "layers":
            continue
        if child._is_interpolation() or child._is_none() or not OmegaConf.is_config(child):
            yield child
        elif isinstance(child, DictConfig):
            yield from _leaves(child)


def _pattern(root: DictConfig) -> tuple[list[str], list[str]]:
    """The kind of each layer, first to last, and what is wrong with it. `name*3` stands for three; the list repeats
    to n_layers."""
    n_layers, kinds = root.get("n_layers"), [str(name) for name in _kinds(root)]
    layers = root.get("layers")
    if layers is not None and not isinstance(layers, DictConfig):
        return ["layer"], [f"layers: is {layers!r}, not a mapping of names to patches of the model's keys"]
    if not isinstance(n_layers, int) or n_layers < 1:
        return ["layer"], [f"n_layers: must be a whole number above 0, found {n_layers!r}"]
    if n_layers > MOST_LAYERS:
        return ["layer"], [f"n_layers: is {n_layers:,} (at most {MOST_LAYERS:,} would do)"]
    pattern = root.get("pattern") or ["layer"]
    if not OmegaConf.is_list(pattern) and not isinstance(pattern, list):
        pattern = [pattern]
    names: list[str] = []
    problems: list[str] = []
    for item in pattern:
        match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\*\s*(\d+))?\s*", str(item))
        if match is None:
            problems.append(f"pattern: cannot read {item!r} (a layer's name, or name*3)")
        elif match[1] not in (*kinds, "layer"):
            hint = did_you_mean(match[1], kinds) or f" (layers has: {', '.join(kinds) or 'none'})"
            problems.append(f"pattern: no layer is named {match[1]!r}{hint}")
        elif len(match[2] or "") > 9 or len(names) + int(match[2] or 1) > MOST_LAYERS:
            problems.append(f"pattern: {item!r} makes too many layers (at most {MOST_LAYERS:,} would do)")
        else:
            names += [match[1]] * int(match[2] or 1)
    if not names:
        return ["layer"], problems or ["pattern: is empty (name at least one layer)"]
    laid = [names[index % len(names)] for index in range(n_layers)]
    idle = [kind for kind in kinds if kind not in laid]
    problems += [f"layers.{kind}: no layer is of this kind (name it in pattern, or leave it out)" for kind in idle]
    return laid, problems


def _scope(root: DictConfig, name: str, problems: list[str]) -> DictConfig:
    """The model as layers of this kind see it: its own keys, with the kind's patch laid over them."""
    patch = _kinds(root).get(name)
    if patch is None:
        return root
    raw = OmegaConf.to_container(root, resolve=False)
    assert isinstance(raw, dict)
    laid = OmegaConf.to_container(patch, resolve=False) if OmegaConf.is_config(patch) else patch
    return OmegaConf.create(_patched(raw, laid, f"layers.{name}", problems))


def _patched(base: Mapping[Any, Any], patch: Any, path: str, problems: list[str]) -> dict[Any, Any]:
    """`patch` laid over `base`; a node that names another kind takes the place of the old one whole."""
    if not isinstance(patch, Mapping):
        problems.append(f"{path}: is {patch!r}, not a mapping of the model's keys")
        return dict(base)
    merged = dict(base)
    for key, value in patch.items():
        old = merged.get(key)
        same = isinstance(value, Mapping) and isinstance(old, Mapping) and value.get("kind") in (None, old.get("kind"))
        merged[key] = _patched(old, value, f"{path}.{key}", problems) if same else value  # type: ignore[arg-type]
    return merged


def _tree(
    root: DictConfig, scopes: dict[str, DictConfig], names: list[str]
) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """The node that `Topology.parse` takes: the model's own fields, and a block for each kind of layer; and the names
    that each kind's block read."""
    tree = {str(key): _plain(root, str(key)) for key in root if key in OWN or key == "kind"}
    for part in ("embedding", "head"):
        inner = tree.setdefault(part, {})
        if isinstance(inner, dict):
            stated = tree.get("vocab_size")  # at fault it is reported once, as the model's own
            inner.setdefault("vocab_size", stated if isinstance(stated, int) and stated > 0 else 1)
    own, blocks, read = set(_reads), {}, {}  # `own` holds what another tower read before, too
    for name, scope in scopes.items():
        _reads.clear()
        blocks[name] = _plain(scope, "block")
        read[name] = set(_reads)
    _reads.update(own, *read.values())
    return {**tree, "blocks": blocks, "pattern": tuple(names)}, read


def _plain(scope: DictConfig, key: str) -> Any:
    value = scope.get(key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _strangers(root: DictConfig, asked: set[str], towers: Iterable[_Tower]) -> list[str]:
    """Keys that are no field, no axis, and that no interpolation ever asks for."""
    known = OWN | set(AXES) | set(STRUCTURE) | asked | _reads | DIMS
    whole = known | BOTH | set(TOWERS) if root.get("kind") == EncoderDecoder.kind else known
    faults = [f"{key}: no such key{did_you_mean(str(key), whole)}" for key in root if key not in whole]
    for tower in towers:
        patch = root.get(tower.name) if tower.name else None
        strange = [str(key) for key in patch if key not in known] if isinstance(patch, DictConfig) else []
        faults += [f"{tower.name}.{key}: no such key{did_you_mean(key, known)}" for key in strange]
    return faults


def _unread(root: DictConfig, read: Mapping[str, set[str]], asked: set[str]) -> list[str]:
    """Keys of a layer kind's patch that its layers do not read: laid over the model they would change nothing."""
    faults = []
    for name, used in read.items():
        patch = _kinds(root).get(name)
        for key in patch if isinstance(patch, DictConfig) else ():
            if key in used or key == "block":
                continue
            known = key in OWN | set(AXES) | set(STRUCTURE) | DIMS | asked
            why = "nothing in these layers reads it (leave it out, or choose what does)"
            faults.append(f"layers.{name}.{key}: {why if known else 'no such key' + did_you_mean(str(key), used)}")
    return faults


_DIMS = """
n_heads n_kv_heads head_dim d_ff window bias norm_eps norm_bias rope_theta rope_factor rotary_dim original_max_seq_len
n_buckets max_distance max_relative_positions position_buckets n_experts top_k balance_coef z_coef normalize_top_k
router_bias router_scale router_jitter n_groups top_k_groups expert_capacity selection_bias shared_expert shared_gate
scale_input swiglu_alpha swiglu_limit q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim d_state
d_conv expand dt_rank ssm_heads ssm_head_dim ssm_groups n_k_heads n_v_heads head_k_dim head_v_dim conv_width
conv_groups
"""
DIMS = frozenset(_DIMS.split())
"""Dimensions that a model may state whether or not its present choices read them, so that axes can be swapped."""


def _idle(key: str, asked: set[str]) -> bool:
    """Whether a dimension is one that no component at work in this model has read."""
    return key in DIMS | asked and key not in OWN | set(AXES) | set(STRUCTURE) | _reads


def _placed(error: ValidationError, towers: Mapping[str, _Tower]) -> list[str]:
    """Each fault at the key where the user can mend it."""
    lines = []
    for item in error.errors(include_url=False):
        path = [str(step) for step in item["loc"]]
        tower = towers.get("") or towers.get(path.pop(0) if path[:1] and path[0] in towers else "")
        where = ".".join(path) or (f"{tower.name}" if tower else "model")
        if tower is None:
            lines.append(f"{where or 'model'}: {item['msg']}")
            continue
        root, scopes = tower.root, tower.scopes
        if path[:1] == ["blocks"] and len(path) > 1:
            where = _origin(scopes[path[1]], ["block", *path[2:]])
            patch = _kinds(root).get(path[1])
            if isinstance(patch, DictConfig) and OmegaConf.select(patch, where) is not None:
                where = f"layers.{path[1]}.{where}"
        elif path:
            where = _origin(root, path)
        own = tower.name and where and OmegaConf.select(tower.patch, where) is not None
        lines.append(f"{tower.prefix if own else ''}{where or 'model'}: {item['msg']}")
    return lines


def _origin(scope: DictConfig, path: list[str]) -> str:
    """Follows interpolations from a path to the key that the value was stated at."""
    node: Any = scope
    for index, step in enumerate(path):
        raw = node._get_node(step) if isinstance(node, DictConfig) and step in node else None
        if raw is None:
            break
        name = re.fullmatch(r"\$\{(?:up|or):\s*([\w]+).*\}", str(raw._value())) if raw._is_interpolation() else None
        if name is not None:
            names = re.findall(r"\w+", str(raw._value()))[1:]
            source = next((each for each in names if each in scope), None)
            if source is None:
                break
            return _origin(scope, [source, *path[index + 1 :]])
        node = raw
    return ".".join(path)


# ---------------------------------------------------------------- Specs as plain data


def to_dict(spec: Any) -> Any:
    """A Spec as plain YAML data, every kind and every field stated; `from_dict` gives the same Spec back."""
    if isinstance(spec, Spec):
        return {"kind": spec.kind, **{field.name: to_dict(getattr(spec, field.name)) for field in spec.fields()}}
    if isinstance(spec, Mapping):
        return {key: to_dict(value) for key, value in spec.items()}
    if isinstance(spec, tuple | list):
        return [to_dict(value) for value in spec]
    return spec


def to_body(spec: Any) -> dict[str, Any]:
    """A Spec as the text of a model's file, with each kind of layer spelled out; `to_spec` gives the same Spec back."""
    return _body(to_dict(spec))


def _body(node: Mapping[str, Any]) -> dict[str, Any]:
    if towers := {name: _body(node[name]) for name in TOWERS if name in node}:
        return {**node, **towers}
    kinds = {name: {"block": block} for name, block in node["blocks"].items()}
    rest = {key: value for key, value in node.items() if key != "blocks"}
    return {**rest, "n_layers": len(node["pattern"]), "layers": kinds}


def from_dict(node: Mapping[str, Any]) -> Any:
    """The Spec that `to_dict` wrote. Raises ConfigError with every fault, its path counted from `model`."""
    try:
        return Topology.parse(_tupled(node))
    except ValidationError as error:
        items = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, ('model', *item['loc'])))}: {item['msg']}" for item in items]
        raise ConfigError(*lines) from error


def _tupled(node: Any) -> Any:
    """Lists as the tuples that Specs hold."""
    if isinstance(node, Mapping):
        return {key: _tupled(value) for key, value in node.items()}
    return tuple(_tupled(value) for value in node) if isinstance(node, list | tuple) else node
