"""List changes to a draft's model that may bring it nearer to the reference: another value of a component's field,
another choice of an axis, or the way another family reads config fields that the draft ignores."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.errors import ConfigError
from zoo.families.expression import Expression, is_expression, read_names
from zoo.families.family import read_family
from zoo.grammar import from_dict, to_dict
from zoo.paths import conf_dir
from zoo.porting.draft import LOCAL, Draft
from zoo.porting.nearest import list_others
from zoo.porting.trial import TrialOutcome
from zoo.spec import Spec

CHOOSES = ("norm", "block", "ffn")
"""Axes whose other choices are tried directly. Other axes are tried as other families state them."""


@dataclass(frozen=True)
class Spot:
    """A component of a model: `path`, the place in the YAML that sets its fields, and `owners`, its places in the Spec
    as plain data (several kinds of layer may share one place in the YAML)."""

    path: tuple[str, ...]
    component: Spec
    owners: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Move:
    """A change of a draft, described by `text`. A change of a single field also has the field (`spot`) and its `value`:
    it can then be tried on the Spec itself, which is ten times as fast as composing a model."""

    text: str
    patch: Mapping[str, Any]
    derive: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    spot: Spot | None = None
    value: tuple[str, Any] = ("", None)

    def apply(self, draft: Draft) -> Draft:
        made = draft.with_model(self.patch).with_keys(self.keys)
        return replace(made, derive={**made.derive, **self.derive})

    def edit(self, outcome: TrialOutcome) -> Spec | None:
        """Set the single field in an outcome's Spec; None for an illegal value."""
        assert self.spot is not None
        node = to_dict(outcome.spec)
        name, value = self.value
        try:
            if value == "${norm}":
                value = node["norm"]
            elif is_expression(value):
                value = Expression(value[1:]).value(outcome.body.fields)
            for owner in self.spot.owners:
                functools.reduce(lambda inner, key: inner[key], owner, node)[name] = value
            return from_dict(node)
        except (ConfigError, KeyError, TypeError, ValueError, ZeroDivisionError):
            return None


def list_spots(draft: Draft, outcome: TrialOutcome) -> list[Spot]:
    """List the components of a model whose fields the YAML can set."""
    spec, kinds = outcome.spec, outcome.body.kinds.get("") or []
    layers = draft.to_family().template(outcome.body.architecture).get("layers") or {}
    found: dict[tuple[str, ...], Spot] = {}
    for name, component in (("embedding", spec.embedding), ("head", spec.head)):
        _note(found, (name,), component, (name,))
    for name, block in spec.blocks.items():
        at = spec.pattern.index(name)
        kind = kinds[at] if at < len(kinds) else "layer"
        _note(found, ("block",), block, ("blocks", name))
        for key in ("attention", "ffn"):
            component = getattr(block, key, None)
            inside = isinstance((layers.get(kind) or {}).get(key), Mapping)
            if component is not None:
                _descend(("layers", kind, key) if inside else (key,), component, ("blocks", name, key), found)
    return list(found.values())


def _note(found: dict[tuple[str, ...], Spot], path: tuple[str, ...], component: Spec, owner: tuple[str, ...]) -> None:
    known = found.get(path)
    if known is None:
        found[path] = Spot(path, component, (owner,))
    elif known.component.kind == component.kind:
        found[path] = replace(known, owners=(*known.owners, owner))


def _descend(
    path: tuple[str, ...], component: Spec, owner: tuple[str, ...], found: dict[tuple[str, ...], Spot]
) -> None:
    _note(found, path, component, owner)
    for each in component.fields():
        value = getattr(component, each.name)
        if isinstance(value, Spec) and value.axis in ("router", "ffn"):
            _descend((*path, each.name), value, (*owner, each.name), found)


def list_flips(draft: Draft, outcome: TrialOutcome) -> Iterator[Move]:
    """Yield the changes of each field with few possible values to every other value."""
    for spot in list_spots(draft, outcome):
        for each in spot.component.fields():
            for other in _others(str(each.type), getattr(spot.component, each.name)):
                yield _set(spot, each.name, other, json.dumps(other))
    for name in ("unit_offset", "bias", "weight"):
        now = getattr(outcome.spec.norm, name, None)
        if isinstance(now, bool):
            yield Move(f"norm.{name}: {json.dumps(not now)}", {"norm": {name: not now}})


def _set(spot: Spot, name: str, value: Any, said: str) -> Move:
    where = (*spot.path, name)
    patch = functools.reduce(lambda inner, key: {key: inner}, reversed(where), value)
    return Move(f"{'.'.join(where)}: {said}", patch, spot=spot, value=(name, value))


def _others(hint: str, now: object) -> Iterable[Any]:
    if hint == "bool":
        return [not now]
    if hint == "bool | None":
        return [each for each in (True, False, None) if each is not now]
    if hint.startswith("Literal["):
        words = json.loads(hint[len("Literal") :].partition("]")[0].replace("'", '"') + "]")
        return [word for word in words if word != now]
    if "Norm | None" in hint:
        return ["${norm}"] if now is None else [None]
    if hint.endswith("| None") and now is not None and not isinstance(now, Spec):
        return [None]
    return []


def list_choices(draft: Draft) -> Iterator[Move]:
    """Yield other choices of the axes in CHOOSES."""
    stated = draft.to_family().model.get("defaults") or []
    for axis in CHOOSES:
        now = next((entry[f"/{axis}"] for entry in stated if f"/{axis}" in entry), None)
        for file in sorted((conf_dir() / axis).glob("*.yaml")):
            if now is not None and file.stem != now and not file.stem.startswith(("moe", "feed_forward", "mixer")):
                chosen = [{f"/{axis}": file.stem} if f"/{axis}" in entry else entry for entry in stated]
                yield Move(f"{axis}: {file.stem}", {"defaults": chosen})


def list_borrowed(
    draft: Draft, fields: Iterable[str], families: Iterable[str], unread: set[str] | None = None
) -> list[Move]:
    """List parts of other families' `model`, such as position or layers, whose expressions read only fields that the
    config has. With `unread`, only parts that read at least one of these fields."""
    own = draft.to_family()
    known = {own.aliases.get(name, name) for name in fields} | set(own.defaults) | set(own.derive) | LOCAL
    found: dict[str, Move] = {}
    for name in families:
        other = read_family(name)
        for patch in _list_parts(other.model):
            names = read_names(patch)
            if not names <= known or (unread is not None and not names & unread):
                continue
            if all(own.model.get(key) == value for key, value in patch.items()):
                continue
            derive = {each: other.derive[each] for each in names & set(other.derive) - set(own.derive)}
            derive = {each: text for each, text in derive.items() if read_names(text) <= known}
            keys = ", ".join(patch)
            found.setdefault(json.dumps(patch, sort_keys=True), Move(f"{keys} as in {name}", patch, derive))
    return list(found.values())


def _list_parts(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in model.items():
        if key in ("defaults", "pattern", "kind", "vocab_size", "d_model", "n_layers", "n_heads"):
            continue
        if key == "layers":
            yield {"layers": value, **({"pattern": model["pattern"]} if "pattern" in model else {})}
        else:
            yield {key: value}


@functools.cache
def _list_positions(model_type: str) -> tuple[tuple[str, Any], ...]:
    """List the distinct position schemes of the families other than `model_type` and its descendants (`list_others`),
    each with the first family that has it."""
    found: dict[str, tuple[str, Any]] = {}
    for name in list_others(model_type):
        value = read_family(name).model.get("position")
        if value is not None:
            found.setdefault(json.dumps(value, sort_keys=True), (name, value))
    return tuple(found.values())


def list_positions(draft: Draft) -> Iterator[Move]:
    """Yield changes that take the position scheme of another family."""
    own = draft.to_family().model.get("position")
    for name, value in _list_positions(draft.model_type):
        if value != own:
            yield Move(f"position as in {name}", {"position": value})


FORMS = ("={}", "=1 / {}", "={} ** -0.5", "={} ** 0.5")
"""Forms in which a component's number may follow from a config's number."""


def list_placements(draft: Draft, outcome: TrialOutcome, name: str, value: object) -> Iterator[Move]:
    """Yield changes that make the draft read the config's field `name`, whose value is `value`. Each sets a component's
    field of a fitting type to that value (in one of FORMS), or changes keys of the model that are expressions, the
    pattern, or the activation."""
    for spot in list_spots(draft, outcome):
        for each in spot.component.fields():
            hint = str(each.type)
            if _takes(hint, value):
                is_real = isinstance(value, int | float) and not isinstance(value, bool) and "loat" in hint
                for form in FORMS if is_real else FORMS[:1]:
                    text = form.format(name)
                    yield _set(spot, each.name, text, text)
    for key, text in draft.to_family().model.items():
        if isinstance(text, str) and text.startswith("=") and key not in ("position", "pattern", "vocab_size"):
            yield Move(f"{key}: ={name}", {key: f"={name}"})
    kinds = draft.to_family().model.get("layers") or {}
    if isinstance(value, list) and len(value) == outcome.spec.n_layers and set(map(str, value)) <= set(kinds):
        yield Move(f"pattern: ={name}", {"pattern": f"={name}"})
    if isinstance(value, str):
        yield Move(f"activation: =act({name})", {"activation": f"=act({name})"})


def _takes(hint: str, value: object) -> bool:
    if isinstance(value, bool):
        return "bool" in hint
    if isinstance(value, int | float):
        return "Float" in hint or "float" in hint or (isinstance(value, int) and ("Int" in hint or "int" in hint))
    return value is None and ("Float" in hint or "Int" in hint)


RELEVANT = {
    "embedding": {"embedding", "position", "d_model"},
    "attention": {"attention", "position", "norm", "norm_eps", "layers", "block", "defaults", "head_dim"},
    "feed-forward": {"ffn", "activation", "layers", "d_ff", "norm", "defaults", "block"},
    "layer": {"block", "norm", "defaults", "layers"},
    "norm": {"norm", "norm_eps", "final_norm", "block", "defaults"},
    "logits": {"head", "norm"},
}
"""The keys of a model that may affect each stage of the forward pass."""


def is_relevant(move: Move, departure: str | None) -> bool:
    """Whether a change could fix the first stage that differs (`departure`). While some tensor has no place, every
    change counts."""
    if departure is None or move.keys:
        return True
    stage = departure.split(" ")[-1] if " " in departure and not departure[-1].isdigit() else departure.split(" ")[0]
    return any(key in RELEVANT[stage] for key in _list_keys(move.patch))


def _list_keys(patch: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that a patch changes, in the model or in a kind of layer."""
    for key, value in patch.items():
        if key == "layers" and "pattern" not in patch:
            yield from (inner for node in value.values() for inner in node)
        else:
            yield key
