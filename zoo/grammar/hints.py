"""Explain how Zoo writes keys that a model does not have: fields of its choices, and other libraries' names.

The hints can be pasted: the node that the model has, with the field added (`attention: {kind: mha, qk_norm: true}`), or
on the command line an override (`attention.qk_norm=true`).
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from zoo.errors import ConfigError
from zoo.grammar.contract import contract_keys
from zoo.grammar.dialect import expand, is_fixed, knows, list_fields, list_marks, list_slots, read_choice
from zoo.grammar.interpolation import split_interpolation
from zoo.grammar.keys import BASES, DIMS
from zoo.grammar.patches import lay_patch
from zoo.grammar.pattern import PLAIN
from zoo.spec import Spec
from zoo.spec.foreign import CHOICES, FOREIGN, fill_form, find_form
from zoo.untrusted.printable import shorten

MOST = 240
"""Maximum characters of a node that a message prints. Instead of a longer node, only the overrides are printed."""

ALWAYS = ("head", "embedding")
"""Components that every model has, of the default kind unless the model states one."""

Patch = dict[str, Any]
"""Keys of a model, with what to change in them: `{attention: {qk_norm: true}}`."""


def hint_keys(
    keys: Mapping[str, Any], root: Mapping[Any, Any], place: str = "", *, typed: bool = False
) -> dict[str, str]:
    """Explain how a model of Zoo writes each of these unknown keys and its value. Keys without a known equivalent have
    no entry. If several keys change one node, each hint shows the node with all changes. `typed` keys are from the
    command line; `place` is the path of the keys, such as `layers.full.` in a kind of layer."""
    if not keys:
        return {}
    try:
        whole = expand(root)
    except ConfigError:  # reported when the Spec is read
        return {}
    own = contract_keys(whole, {})
    found = {key: _place(key, value, {**keys, **whole}, own) for key, value in keys.items()}
    together: Patch = {}
    for _, patch in found.values():
        for name, node in patch.items():
            before = together.get(name)
            together[name] = {**before, **node} if isinstance(before, Mapping) and isinstance(node, Mapping) else node
    lines = {} if typed else {key: _to_flow({key: each})[1:-1] for key, each in _lay(together, own, whole).items()}
    forms = {key: line if len(line) <= MOST else "" for key, line in lines.items()}  # a line of the file for each key
    hints = {}
    for key, (lead, patch) in found.items():
        words = {each: " ".join(_list_overrides(f"{place}{each}", value, whole)) for each, value in patch.items()}
        shown = (" " if typed else "; ").join(forms.get(each) or words[each] for each in patch)
        also = f", or {' '.join(words.values())}" if forms and lead.endswith(" has it (") else ""
        hints[key] = f"{lead}{shown}{also})" if patch else lead
    return {key: hint for key, hint in hints.items() if hint}


def find_stated(key: str, root: Mapping[Any, Any]) -> str | None:
    """Find the field that this key would fill, if the model states the field itself: `ffn.shared` for
    `shared_expert`."""
    for axis, base in BASES.items():
        node = root.get(axis)
        kind = node.get("kind") if isinstance(node, Mapping) else None
        choice = read_choice(base, kind) if isinstance(kind, str) and knows(base, kind) else {}
        for name, value in choice.items():
            if key in split_interpolation(value)[0] and key not in split_interpolation(node[name])[0]:  # type: ignore[index]
                return f"{axis}.{name}"
    return None


def settle_line(fault: str, root: Mapping[Any, Any]) -> str:
    """Write a fault of the Spec in the words of the model's file. A choice has the name that the file uses (`mha`, of
    the kind gqa). For a field of an inner component, or a value that Zoo writes elsewhere, the line names the right
    place."""
    key, _, text = fault.partition(": ")
    axis, _, name = key.partition(".")
    value = root.get(axis)
    if not name and text.startswith("must be ") and axis in DIMS and find_form(axis, value):
        return f"{key}: {text.rpartition(' (')[0]}{hint_keys({axis: value}, root)[axis].removeprefix('no such key')}"
    if axis not in BASES or not isinstance(value, Mapping) or " has no such field" not in text:
        return fault
    own = contract_keys({axis: value}, {})[axis]
    word = own if isinstance(own, str) else own.get("kind", value.get("kind"))
    text = text.replace(f"{axis} '{value.get('kind')}'", f"{axis} '{word}'", 1)
    inner = next((each for each, base in _list_inner(axis, value) if name in base), None)
    if inner is None and name not in DIMS:
        return f"{key}: {text}"
    if inner is None:
        return f"{key}: {text.rpartition(' (')[0]} (at the model's top level: {_to_flow({name: value[name]})[1:-1]})"
    kept = {each: stated for each, stated in own.items() if each != name} if isinstance(own, Mapping) else own
    stated = own.get(inner) if isinstance(own, Mapping) else None
    kind = {"kind": stated} if isinstance(stated, str) else {}
    node = _lay_choice(axis, {inner: {**kind, name: value[name]}}, kept, value)
    return f"{key}: {text.rpartition(' (')[0]}; {inner} has it ({_to_flow({axis: node})[1:-1]})"


def _list_inner(axis: str, node: Mapping[Any, Any]) -> Iterator[tuple[str, set[str]]]:
    """List the components stated within a choice, with the names of their fields."""
    choice = BASES[axis].kinds.get(str(node.get("kind")))
    for field, base in (list_fields(choice) if choice else {}).items():
        inner = node.get(field)
        if isinstance(inner, Mapping) and inner.get("kind") in base.kinds:
            yield field, _list_names(base, inner["kind"])


def _place(key: str, value: Any, whole: Mapping[Any, Any], own: Mapping[Any, Any]) -> tuple[str, Patch]:
    """Find the meaning of an unknown key. Returns the start of the message about the key ("" if the meaning is not
    known), and the patch by which a model states it."""
    if "${" in str(value):
        return "", {}
    if form := find_form(key, value):
        if value is None or (value == 0 and not isinstance(value, bool)):
            return "no such key (leave it out)", {}
        return "no such key (Zoo writes ", fill_form(form, value, lambda name: _look(name, whole))
    if value is False and find_form(key, True):
        return "no such key (leave it out)", {}
    if ours := FOREIGN.get(key):
        told = CHOICES.get(value.casefold(), value) if isinstance(value, str) and ours in BASES else value
        there = not isinstance(told, Mapping | list) and (ours not in BASES or knows(BASES[ours], str(told)))
        place = find_stated(ours, whole) or ours
        axis, _, field = place.partition(".")
        lead = f"no such key ({place} is Zoo's name for it"
        if not there or told is None:
            return f"{lead})", {}
        return f"{lead}: ", {axis: {field: told} if field else told}
    moved = []
    for place, axis, kind, choice in _list_choices(whole):
        if key in choice.moved:
            moved.append(f"{axis}: {{{choice.moved[key]}}}")
        if any(field.name == key for field in choice.fields()):
            node = (own["layers"][place[1]] if place else own).get(axis)
            word = node.get("kind", kind) if isinstance(node, Mapping) else node if isinstance(node, str) else kind
            patch: Patch = {axis: {key: value}}
            for step in reversed(place):
                patch = {step: patch}
            return f"no such key of a model; {'.'.join(map(str, [*place, axis]))} '{word}' has it (", patch
    if moved:
        return f"no such key any more ({', or '.join(moved)})", {}
    return "", {}


def _list_choices(whole: Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], str, str, type[Spec]]]:
    """List the choices of a model and of its kinds of layer, axis by axis: each with its place, axis and kind."""
    slots = {axis: list_slots()[axis] for axis in (*BASES, *ALWAYS)}
    layers = whole.get("layers")
    patches = layers.items() if isinstance(layers, Mapping) else ()
    nodes = [((), whole), *((("layers", name), patch) for name, patch in patches if isinstance(patch, Mapping))]
    for (axis, base), (place, node) in itertools.product(slots.items(), nodes):
        stated = node.get(axis)
        kind: Any = stated.get("kind") if isinstance(stated, Mapping) else None
        kind = base.default if kind is None and axis in ALWAYS and not place else kind
        if not place and _is_overruled(axis, [each for _, each in nodes[1:]], whole):
            continue
        if kind in base.kinds:
            yield place, axis, kind, base.kinds[kind]


def _is_overruled(axis: str, patches: list[Mapping[Any, Any]], whole: Mapping[Any, Any]) -> bool:
    """Tell whether every layer is of a kind that states its own choice of an axis, so no layer reads the model's."""
    own = [each[axis].get("kind") for each in patches if isinstance(each.get(axis), Mapping)]
    plain = PLAIN in re.findall(r"[\w.-]+", str(whole.get("pattern", PLAIN)))
    return bool(own) and None not in own and len(own) == len(patches) and not plain


def _look(name: str, whole: Mapping[Any, Any]) -> Any:
    """Read a key of a model under its own name, or under another library's."""
    names = [name, *(theirs for theirs, ours in FOREIGN.items() if ours == name)]
    return next((whole[each] for each in names if whole.get(each) is not None), None)


def _lay(patch: Patch, own: Mapping[Any, Any], whole: Mapping[Any, Any]) -> Patch:
    """Lay a patch over `own`, a model's contracted keys. `whole` is the model in full."""
    found: Patch = {}
    for key, value in patch.items():
        if key == "layers":
            kinds, full = (each[key] if isinstance(each.get(key), Mapping) else {} for each in (own, whole))
            laid = {
                name: {**kinds.get(name, {}), **_lay(each, kinds.get(name, {}), {**whole, **full.get(name, {})})}
                for name, each in value.items()
            }
            found[key] = {**kinds, **laid}
        else:
            word = {"kind": value} if isinstance(value, str) and key in BASES else value
            found[key] = _lay_choice(key, word, own.get(key), whole.get(key)) if isinstance(word, Mapping) else value
    return found


def _lay_choice(axis: str, patch: Mapping[str, Any], own: Any, there: Any) -> Any:
    """Add the fields of a patch to a choice. The choice keeps its kind if this kind has the fields; else it gets the
    kind of the patch."""
    base = list_slots().get(axis)
    if base is None:
        return patch
    stated = dict(own) if isinstance(own, Mapping) else {"kind": own} if isinstance(own, str) else {}
    fields = {name: value for name, value in patch.items() if name != "kind"}
    if _takes(patch, base, there):
        return lay_patch(stated, fields, "", [])
    names = _list_names(base, patch["kind"])
    if names:  # what a swap on the command line keeps
        choice = read_choice(base, patch["kind"])
        names -= list_marks(base, patch["kind"]) | {name for name in choice if is_fixed(name, choice[name])}
    kept = {name: value for name, value in stated.items() if name in names}
    node = {"kind": patch["kind"], **kept, **fields}
    return node["kind"] if node.keys() == {"kind"} else node


def _takes(patch: Mapping[str, Any], base: type[Spec], there: Any) -> bool:
    """Tell whether a model's choice has the fields of a patch, so that its kind may stay."""
    kind = there.get("kind") if isinstance(there, Mapping) else base.default
    fields = patch.keys() - {"kind"}
    return "kind" not in patch or bool(fields and fields <= _list_names(base, kind))


def _list_names(base: type[Spec], word: Any) -> set[str]:
    """List the fields of a choice; empty for an unknown choice."""
    known = isinstance(word, str) and knows(base, word)
    return {field.name for field in base.kinds[read_choice(base, word)["kind"]].fields()} if known else set()


def _list_overrides(place: str, value: Any, whole: Mapping[Any, Any]) -> Iterator[str]:
    """Write a key of a patch as overrides of a command line."""
    axis, base = place.rpartition(".")[2], list_slots().get(place.rpartition(".")[2])
    if base is not None and isinstance(value, Mapping):
        if not _takes(value, base, whole.get(axis)):
            yield f"{place}={value['kind']}"
        for name, each in value.items():
            if name != "kind":
                yield shlex.quote(f"{place}.{name}={shorten(_to_flow(each), MOST)}")
    elif place.split(".")[-2:][0] == "layers" and isinstance(value, Mapping):
        for name, each in value.items():
            yield from _list_overrides(f"{place}.{name}", each, whole)
    else:
        yield shlex.quote(f"{place}={shorten(_to_flow(value), MOST)}")


def _to_flow(value: Any) -> str:
    """Write a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()
