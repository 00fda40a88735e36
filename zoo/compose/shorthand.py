"""Expand the shorthand in users' files: a key `attention: gqa` becomes `- /attention: gqa` in the defaults list."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from zoo.grammar import AXES
from zoo.grammar.dialect import is_choice
from zoo.grammar.patches import list_patches

LATE = "_late_"
"""Key for components that are set, by dotted key, after Hydra has merged all files. Hydra would merge their fields with
those of the choice's own file."""

Body = dict[str, Any]
"""A YAML file as plain data, with interpolations as text."""


def find_choices(body: Body, is_group: Callable[[str], bool]) -> dict[str, tuple[str, str]]:
    """Find the choices in a file and in its patches (`layers.local.attention: sliding`). Return a mapping from the
    choice's key in a defaults list to (group, option). A mapping with a `kind` is a choice too."""
    found = {}
    for path, node in _list_scopes(body):
        laid = path.rpartition(".")[0].endswith("layers")
        for key, value in node.items():
            if word := _read_word(key, value, is_group, laid):
                found[f"{key}@{path}.{key}" if path else key] = (key, word)
    return found


def _list_scopes(body: Body, path: str = "") -> Iterator[tuple[str, Body]]:
    """Yield (path, mapping) for a config and its patches. For a training config also yield the model and its
    patches."""
    yield path, body
    yield from ((f"{path}.{place}" if path else place, patch) for place, patch, _ in list_patches(body))
    if not path and isinstance(model := body.get("model"), dict):
        yield from _list_scopes(model, "model")


def _read_word(key: object, value: object, is_group: Callable[[str], bool], laid: bool) -> str | None:
    """Return the choice in a value: a word, or the `kind` of a mapping (Hydra would merge such a mapping with the
    previous choice's fields). None for anything else. None also for packaged choices in a kind of layer (`laid`), which
    the grammar merges over the model's own."""
    if isinstance(value, dict) and key in AXES and not laid:
        kind = value.get("kind")
        return kind if isinstance(kind, str) and is_choice(str(key), kind) else None
    if laid and isinstance(value, str) and key in AXES and is_choice(str(key), value):
        return None
    if not isinstance(value, str) or "${" in value or value == "???" or key == "defaults":
        return None
    return value if is_group(str(key)) else None


def expand_shorthand(
    body: Body,
    chosen: Mapping[str, tuple[str, str]],
    list_known: Callable[[Body], Collection[str]] = lambda rest: (),
    base: str | None = None,
) -> Body:
    """Move the choices of a file (`chosen`, from `find_choices`) into its defaults list, before the file's own keys.

    If the defaults list already sets a choice's key, an override of that key is appended instead. `list_known` returns
    the keys that a file's defaults list sets. `base` is the first entry for a file without a defaults list.
    """
    entries = _list_entries(body, base)
    rest = _drop_choices(body, chosen) | {"defaults": entries}
    known = list_known(rest) if chosen and len(entries) > 1 else ()
    new = [{f"/{key}": option} for key, (_, option) in chosen.items() if key not in known]
    old = [{f"override /{key}": option} for key, (_, option) in chosen.items() if key in known]
    at = entries.index("_self_")
    return rest | {"defaults": entries[:at] + new + entries[at:] + old}


def _list_entries(body: Body, base: str | None) -> list[Any]:
    """Return a file's defaults list. If it lacks `_self_`, add it at the end, but before overrides."""
    entries = list(body.get("defaults", [base] if base else []))
    if "_self_" not in entries:
        overrides = (
            i for i, e in enumerate(entries) if isinstance(e, dict) and str(next(iter(e), "")).startswith("override ")
        )
        entries.insert(next(overrides, len(entries)), "_self_")
    return entries


def _drop_choices(body: Body, chosen: Mapping[str, tuple[str, str]]) -> Body:
    """Copy a file's keys without the defaults list and the choices. A choice's fields stay; fields that are components
    with a kind move to LATE."""
    rest = copy.deepcopy({key: value for key, value in body.items() if key != "defaults"})
    late: dict[str, Any] = {}
    for place, (key, word) in chosen.items():
        path = place.rpartition("@")[2]
        node = functools.reduce(operator.getitem, path.split(".")[:-1], rest)
        if isinstance(node[key], dict):
            fields = {name: value for name, value in node[key].items() if name != "kind"}
            node[key] = {name: value for name, value in fields.items() if not _is_component(value)}
            late |= {f"{path}.{name}": value for name, value in fields.items() if _is_component(value)}
        else:
            assert node.pop(key) == word
    return rest | ({LATE: late} if late else {})


def _is_component(value: object) -> bool:
    return isinstance(value, dict) and "kind" in value


def anchor_defaults(body: Body) -> Body:
    """Make the entries of a file's defaults list absolute. The file can then be stored as an option of a group."""

    def entry(each: object) -> Any:
        if isinstance(each, str):
            return each if each.startswith(("/", "_self_")) else f"/{each}" + ("" if "@" in each else "@_here_")
        if isinstance(each, dict) and each:
            key, value = next(iter(each.items()))
            *words, group = str(key).split(" ")
            return {" ".join([*words, group if group.startswith("/") else f"/{group}"]): value}
        return each

    return body | {"defaults": [entry(each) for each in body.get("defaults", [])]}
