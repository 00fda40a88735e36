"""Expand the plain dialect: wherever a component may stand, a choice is a word, a mapping, or only the fields that
differ.

    qk_norm: rmsnorm                    the choice `rmsnorm`, with its dimensions from the enclosing keys
    qk_norm: {kind: rmsnorm, eps: 1e-5}  the same with one field set
    qk_norm: {eps: 1e-5}                the usual choice (here the model's own norm) with one field set
    qk_norm: true                       the usual choice; false: none

A word is the name of a file in conf/AXIS (`mha`, `rope_yarn`), or of a kind. It stands for that file's content, whose
interpolations take dimensions from the enclosing keys. Expanding works on plain data before interpolations are resolved
(`zoo.grammar.parsing`), so that files, overrides, layer patches, towers and mappings in Python all mean the same.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError, did_you_mean, refuse
from zoo.grammar.interpolation import split_interpolation
from zoo.grammar.keys import BASES, TOWERS
from zoo.grammar.patches import lay_patch
from zoo.model.decoder import Decoder
from zoo.model.encoder_decoder import EncoderDecoder
from zoo.model.moe import ExpertLatent, SharedExpert
from zoo.model.position.rotary import Scaling
from zoo.paths import list_conf, read_conf
from zoo.spec import Node, Spec

MOST_LIKE = 50
"""Maximum length of a chain of layer kinds, each `like` the next."""

INNER = {"ffn": "gated", "attention": "gqa"}
"""The usual choice of an axis for a component inside another component. It is not the model's own choice, because that
may be the outer component itself."""

USUAL_ROUTER = "softmax_topk"
"""The router of a mixture of experts whose model states none."""

SHARED: dict[str, type[Spec]] = {"shared_expert": SharedExpert, "expert_latent": ExpertLatent}
"""Top-level keys of a model that fill a component's field: `shared_expert` fills `ffn.shared`."""


def expand(root: Mapping[Any, Any]) -> dict[Any, Any]:
    """Write every choice in a model's YAML in full, as a mapping with its kind. A mixture of experts whose model states
    no router gets USUAL_ROUTER."""
    found = _expand_keys(root, root, root)
    for tower in TOWERS:
        if isinstance(patch := root.get(tower), Mapping) and root.get("kind") == EncoderDecoder.kind:
            found[tower] = _expand_keys(patch, root, lay_patch(root, patch, "", []))
    if _lacks_router(found):
        found["router"] = read_choice(BASES["router"], USUAL_ROUTER)
    return found


def _lacks_router(node: Mapping[Any, Any]) -> bool:
    """Tell whether an expanded model has a mixture of experts and states no router."""
    if "router" in node:
        return node["router"] == "${up:router}"
    return any(_lacks_router(value) for value in node.values() if isinstance(value, Mapping))


def _expand_keys(node: Mapping[Any, Any], around: Mapping[Any, Any], scope: Mapping[Any, Any]) -> dict[Any, Any]:
    """Expand the keys of a model or of a patch. `around` has the choices that the patch changes. `scope` has the
    model's choices; `true` and a mapping without a kind refer to them."""
    slots = list_slots()
    found = {
        key: _expand(keep_stated(key, value, node, around), slots[key], around.get(key), scope)
        if key in slots
        else value
        for key, value in node.items()
    }
    if isinstance(layers := node.get("layers"), Mapping):
        found["layers"] = {
            name: _expand_keys(patch, scope, lay_patch(scope, patch, "", [])) if isinstance(patch, Mapping) else patch
            for name, patch in _inherit(layers).items()
        }
    return found


def keep_stated(key: Any, value: Any, patch: Mapping[Any, Any], around: Mapping[Any, Any]) -> Any:
    """Lay a choice in a patch over the model's own choice of the same kind. A field of the model is kept if the
    choice's file only looks the field up, and the patch does not state it: `layers.near.attention: sliding` keeps
    `bias: qkv` of the model's attention. Fields that mark another choice of the kind (`list_marks`) get their defaults:
    `layers.far.attention: gqa` has no window in a sliding model."""
    value, old = _name_cross(key, value), around.get(key)
    word = value.get("kind") if isinstance(value, Mapping) else value
    if patch is around or key not in BASES or not isinstance(word, str) or not isinstance(old, Mapping):
        return value
    base, choice = BASES[key], read_choice(BASES[key], word)
    if old.get("kind") not in (word, choice["kind"]) or choice["kind"] not in base.kinds:
        return value
    own = {"kind": word} if isinstance(value, str) else value
    usual = {field.name: field.default for field in base.kinds[choice["kind"]].fields()}
    gone = {name: usual[name] for name in list_marks(base, word) if name in old}
    kept = {
        name: old[name]
        for name, text in choice.items()
        if name in old and not is_fixed(name, text) and not patch.keys() & {*split_interpolation(text)[0]}
    }
    kept = {name: each for name, each in kept.items() if not _is_of_file(base.axis, choice["kind"], name, each)}
    return {**choice, **gone, **kept, **own}


def _is_of_file(axis: str, kind: object, name: str, value: object) -> bool:
    """Tell whether a field's value came from the file of a choice, not from a model: the value looks up a key, or
    equals the value in a file of this kind (`n_kv_heads: 1` of `mqa`)."""
    return "${" in str(value) or any(name in file and file[name] == value for file in _list_kin(axis, kind))


def is_fixed(name: str, value: object) -> bool:
    """Tell whether a choice's file fixes a field: `mqa` fixes n_kv_heads to `1`, `mha` to `${up:n_heads}`. A field is
    not fixed if the file looks up a key of the same name, or gives only a literal for a missing key (`${or:…}`): the
    model may then state another value."""
    names, literal = split_interpolation(value)
    return not names or (literal is None and len(names) == 1 and not names[0].endswith(name))


def list_marks(base: type[Spec], word: str) -> frozenset[str]:
    """List the fields that tell a choice apart from others of its kind by being unset: other choices' files set them,
    and this choice's file does not state them. Example: `window` for `gqa`, because `sliding` is a gqa with a
    window."""
    choice = read_choice(base, word)
    return _list_marks(base.axis, choice["kind"]) - choice.keys()


@functools.cache
def _list_marks(axis: str, kind: object) -> frozenset[str]:
    kin = _list_kin(axis, kind)
    return frozenset(name for file in kin for name, value in file.items() if name != "kind" and _is_mark(value))


@functools.cache
def _list_kin(axis: str, kind: object) -> tuple[dict[str, Any], ...]:
    return tuple(file for file in (read_file(axis, word) for word in list_files(axis)) if file["kind"] == kind)


def _is_mark(value: object) -> bool:
    """Tell whether a choice's file sets a field to this value, rather than only looking it up around the choice."""
    names, literal = split_interpolation(value)
    return not names or literal not in (None, "null", "false")


def _name_cross(key: object, value: object) -> Any:
    """Replace a choice of `cross` by the content of its file in conf/cross. The kinds of `cross` are attention's."""
    word = value.get("kind") if isinstance(value, Mapping) else value
    if key != "cross" or not isinstance(word, str) or word not in list_files("cross"):
        return value
    fields = {name: each for name, each in value.items() if name != "kind"} if isinstance(value, Mapping) else {}
    return lay_patch(read_file("cross", word), fields, "cross", [])


def _inherit(layers: Mapping[Any, Any]) -> dict[Any, Any]:
    """Resolve `like`: lay the patch of a kind of layer over the patch of the kind that it names. Raises ConfigError for
    an unknown name, a cycle, or a patch that is no mapping."""

    def whole(name: object, above: tuple[Any, ...]) -> Any:
        patch = layers[name]
        if not isinstance(patch, Mapping) or "like" not in patch:
            return patch
        base, place = patch["like"], f"layers.{name}.like"
        if not isinstance(base, str) or base not in layers:
            hint = did_you_mean(str(base), map(str, layers)) or f" (layers has: {', '.join(map(str, layers))})"
            raise ConfigError(f"{place}: no kind of layer is named {base!r}{hint}")
        if base in (*above, name) or len(above) > MOST_LIKE:
            raise ConfigError(f"{place}: leads back to where it starts (a kind that is like no other)")
        problems: list[str] = []
        own = {key: value for key, value in patch.items() if key != "like"}
        laid = lay_patch(whole(base, (*above, name)) or {}, own, f"layers.{name}", problems)
        refuse(problems)
        return laid

    return {name: whole(name, ()) for name in layers}


def _expand(node: object, base: type[Spec], around: object, scope: Mapping[Any, Any]) -> Any:
    """Expand one node at a place for components of the axis `base`. `around` is the node that is there before a
    patch."""
    if issubclass(base, Node):
        return _expand_node(node, base, around, scope)
    if node is False:
        return None
    if node is True:
        usual = find_usual(base)
        return usual if "${" in usual else _expand({"kind": usual}, base, None, scope)
    if isinstance(node, str):
        return _expand_fields(read_choice(base, node), base, None, scope) if knows(base, node) else node
    if not isinstance(node, Mapping):
        return node
    kind = node.get("kind")
    if kind is None:
        if isinstance(around, Mapping) or base.default:  # its kind is that of `around`, or the axis' default
            return _expand_fields(node, base, around, scope)
        usual = find_usual(base)
        stated = scope.get(base.axis) if usual == f"${{up:{base.axis}}}" else {"kind": usual}
        if not isinstance(stated, Mapping) or stated.get("kind") is None:
            return node
        return _expand({**stated, **node, "kind": stated["kind"]}, base, None, scope)
    same = isinstance(around, Mapping) and around is not node and around.get("kind") == kind
    if not isinstance(kind, str) or same or not knows(base, kind):
        return _expand_fields(node, base, around, scope)
    choice = read_choice(base, kind)
    own = {key: value for key, value in node.items() if key != "kind"}
    return _expand_fields(lay_patch(choice, own, base.axis, []), base, None, scope)


def _expand_node(node: object, base: type[Node], around: object, scope: Mapping[Any, Any]) -> Any:
    """Expand a `Node`, a group of fields of its owner. A word, or keys that are not its own fields, belong to the
    component in its main field: `qk_norm: rmsnorm`, `qk_norm: {eps: 1e-5, over: heads}`."""
    main, names = list_fields(base).get(base.word), {field.name for field in base.fields()}
    around = None if around is node else around
    if node is None or node is False:
        return None
    if main is None:
        usual = {} if node is True and base.word else node
        return _expand_fields(node, base, around, scope) if isinstance(node, Mapping) else usual
    if not isinstance(node, Mapping):
        return _expand(node, main, None, scope)
    fields = {key: value for key, value in node.items() if key in names}
    rest = {key: value for key, value in node.items() if key not in names}
    laid = isinstance(around, Mapping) and "kind" not in around  # a patch over a node in full
    if not fields and not laid:
        return _expand(rest, main, around, scope) if rest else _expand(True, main, None, scope)
    if rest:
        fields[base.word] = _add_fields(fields.get(base.word), rest)
    elif base.word not in fields and not isinstance(around, Mapping):
        fields[base.word] = True
    return _expand_fields(fields, base, around, scope)


def _add_fields(component: object, fields: dict[Any, Any]) -> dict[Any, Any]:
    """Add fields to a component that is given as a mapping, as a word, or as `true`."""
    word = {"kind": component} if isinstance(component, str) and "${" not in component else {}
    return {**(component if isinstance(component, Mapping) else word), **fields}


def _expand_fields(node: Mapping[Any, Any], base: type[Spec], around: Any, scope: Mapping[Any, Any]) -> dict[Any, Any]:
    """Expand the components among a node's fields."""
    if not any(map(_may_be_choice, node.items())):  # skips `list_fields`: completing a class takes a millisecond
        return dict(node)
    old = around if isinstance(around, Mapping) else {}
    kind = base.kind if issubclass(base, Node) else node.get("kind", old.get("kind", base.default))
    slots = list_fields(base.kinds[kind]) if kind in base.kinds else {}
    inner = {**scope, "norm": {"kind": "rmsnorm"}} if base.axis == "norm" else scope  # the model's norm may be this one
    return {
        key: _expand(value, slots[key], old.get(key), inner) if key in slots else value for key, value in node.items()
    }


def _may_be_choice(field: tuple[Any, Any]) -> bool:
    """Tell whether a field may hold a choice: a mapping, a boolean, or a text under another key than `kind`."""
    name, value = field
    return isinstance(value, Mapping | bool) or (isinstance(value, str) and "${" not in value and name != "kind")


def find_usual(base: type[Spec]) -> str:
    """Return the usual choice of an axis: an interpolation of the model's own choice, or a name."""
    if base.axis in INNER:
        return INNER[base.axis]
    if base.axis in BASES and BASES[base.axis] is base:
        return f"${{up:{base.axis}}}"
    return base.default or next(iter(base.kinds))


def is_slot(key: str) -> bool:
    """Tell whether a key, of a model or of a component, may hold a component."""
    return key in list_slots() or key in _list_inner()


@functools.cache
def _list_inner() -> frozenset[str]:
    return frozenset(name for base in BASES.values() for kind in base.kinds.values() for name in list_fields(kind))


def is_choice(axis: str, word: str) -> bool:
    """Tell whether an axis of a model has a file of this name in conf/."""
    return word in list_files(axis)


def knows(base: type[Spec], word: str) -> bool:
    """Tell whether an axis has a choice of this name: a file or a kind."""
    return word in list_files(base.axis) or word in base.kinds


def read_choice(base: type[Spec], word: str) -> dict[str, Any]:
    """Read the content of a choice's file, or make a node of the bare kind."""
    return dict(read_file(base.axis, word)) if word in list_files(base.axis) else {"kind": word}


@functools.cache
def list_files(axis: str) -> frozenset[str]:
    """List the choices of an axis that have a file in conf/."""
    return frozenset(list_conf(axis)) if axis in BASES or axis == Scaling.axis else frozenset()


@functools.cache
def read_file(axis: str, word: str) -> dict[str, Any]:
    """Read the file of a choice."""
    return read_conf(f"{axis}/{word}")


@functools.cache
def list_slots() -> dict[str, type[Spec]]:
    """List the keys of a model that hold a component, and the axis of each."""
    return {**list_fields(EncoderDecoder), **list_fields(Decoder), **BASES, **SHARED}


@functools.cache
def list_fields(choice: type[Spec]) -> dict[str, type[Spec]]:
    """List the fields of a choice that hold a component, and the axis of each."""
    choice.complete()
    annotations = {name: field.annotation for name, field in choice.__pydantic_fields__.items()}  # type: ignore[attr-defined]
    found = {name: _find_axis(annotation) for name, annotation in annotations.items()}
    return {name: axis for name, axis in found.items() if axis is not None}


def _find_axis(annotation: object) -> type[Spec] | None:
    """Find the axis in a field's annotation: `Norm`, `Norm | None`, or either with checks."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation if issubclass(annotation, Node) or (annotation.axis and not annotation.kind) else None
    if typing.get_origin(annotation) in (tuple, list, dict):
        return None
    found = [axis for each in typing.get_args(annotation) if (axis := _find_axis(each)) is not None]
    return found[0] if found else None
