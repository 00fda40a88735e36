"""Describe a component in a few words: its name, and the fields that are set."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection
from typing import Any

from zoo.model.position.base import Position
from zoo.paths import conf_dir, read_conf
from zoo.spec import Node, Spec

QUIET = re.compile(r"(.*_)?(eps|coef|init|seed|vocab_size|max_seq_len)|d_model|n_layers|needs_block|moved|chunk_size")
"""Fields that say nothing about an architecture, or that a figure says once elsewhere."""

WEIGHTS = ("selection_bias",)
"""Fields that are said of a component even if they have their defaults, because they stand for weights of its own."""

SPELT = {"qk": "QK", "kv": "KV", "q": "Q", "k": "K", "v": "V", "o": "O", "id": "ID", "dt": "Δt", "ffn": "FFN"}
"""Words of fields that are written otherwise."""

NAMED = re.compile(r"([A-Z][^.:,()=·]{3,40}) \([^)]*\d{4}")
"""The name of an idea at the start of a docstring, before its source: `Grouped-query attention (Ainslie …, 2023)`."""


def name_component(spec: Spec) -> str:
    """Name a component by its class: GQA, RMSNorm, MoE. The two extremes of GQA are MHA and MQA."""
    return _name_groups(spec, type(spec).__name__)


def _name_groups(spec: Spec, text: str) -> str:
    """Name groups of query heads by what they are: a group is one head (MHA), or all (MQA)."""
    heads, groups = getattr(spec, "n_heads", 0), getattr(spec, "n_kv_heads", None)
    word = "head" if groups == heads else "query" if groups == 1 else ""
    return text.replace("GQA", f"M{word[0].upper()}A").replace("Grouped-query", f"Multi-{word}") if word else text


def find_long_name(spec: Spec) -> str:
    """Find a component's full name at the start of its docstring; "" if it starts otherwise."""
    found = find_name(inspect.getdoc(type(spec)) or "")
    return _name_groups(spec, found) if found.lower() != name_component(spec).lower() else ""


def find_case(spec: Spec) -> str:
    """Find the name of a choice in conf/ that is a case of a component: whose file states numbers or truth values that
    are not the fields' defaults, all as this component has them. "" if there is none."""
    defaults = {each.name: each.default for each in spec.fields()}
    for name, stated in _list_cases(spec.axis, spec.kind):
        own = {key: value for key, value in stated.items() if key in defaults and defaults[key] != value}
        if own and all(getattr(spec, key) == value for key, value in own.items()):
            return name
    return ""


@functools.cache
def _list_cases(axis: str, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """List the choices of a kind that have a name in their first line, with the plain values that they state."""
    found = []
    for file in sorted((conf_dir() / axis).glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        name = find_name(text.removeprefix("# "))
        if name and file.stem != kind and f"\nkind: {kind}\n" in text:
            plain = {key: value for key, value in read_conf(f"{axis}/{file.stem}").items() if not _is_reference(value)}
            found.append((name, plain))
    return found


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict | list) or "${" in str(value)


def find_name(text: str) -> str:
    """Find the name of an idea at the start of a text, before its source; "" if it starts otherwise."""
    found = NAMED.match(text)
    return found[1] if found else ""


def spell(name: str) -> str:
    """Spell a field's name as words: `qk_norm` as `QK norm`."""
    return "d_ff" if name == "d_ff" else " ".join(SPELT.get(word, word) for word in name.split("_"))


def list_set_fields(spec: Spec) -> list[tuple[str, Any]]:
    """List the fields that characterise a component: dimensions, and values that differ from their defaults."""
    found = []
    for field in spec.fields():
        value = getattr(spec, field.name)
        dimension = (type(value) is int and value > 1) or field.name in WEIGHTS
        if QUIET.fullmatch(field.name) or value is None or value is False:
            continue
        if (value == field.default and not dimension) or _is_empty(value) or _is_embedded(value):
            continue
        found.append((field.name, value))
    return found


def _is_embedded(value: Any) -> bool:
    """Whether a value is a position scheme that acts on the embedding alone, where it has a box of its own."""
    return isinstance(value, Position) and value.embeds and not value.inside


def _is_empty(value: Any) -> bool:
    """Whether a value is a node none of whose fields is set, as values that are normed in other layers alone."""
    return (
        isinstance(value, Node)
        and bool(value.fields())
        and not any(getattr(value, each.name) for each in value.fields())
    )


def say_field(name: str, value: Any) -> str:
    """Format a plain field: `32 heads`, `head dim 128`, `sinks`, `bias qkv`."""
    if value is True:
        return spell(name)
    if name == "top_k":
        return f"top {value}"
    if isinstance(value, int) and name.startswith("n_"):
        return f"{value:,} {spell(name[2:]) if value != 1 else spell(name[2:]).removesuffix('s')}"
    return f"{spell(name)} {say_value(value)}"


def say_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(say_value, value)) if len(value) <= 4 else f"{len(value)} values"
    return str(value).replace("_", " ")


def say_component(spec: Spec, depth: int = 1) -> str:
    """Describe a component held by another one, in a line: `RoPE · theta 500,000`."""
    words = [] if isinstance(spec, Node) else [name_component(spec) if spec.kind != "none" else "none"]
    if spec.axis == "norm":
        return words[0]
    for name, value in list_set_fields(spec):
        if not isinstance(value, Spec):
            words.append(say_field(name, value))
        elif depth:
            words.append(say_held(name, value, depth - 1))
    return " · ".join(words)


def say_held(name: str, value: Spec, depth: int = 1) -> str:
    """Describe a held component under the name of its field. The name is left out if the component's name says the
    same."""
    said = say_component(value, depth)
    same = name == value.axis != "position" and said != "none" and not isinstance(value, Node)
    return said if same else f"{spell(name)} {said}".strip()


def describe_fields(spec: Spec, but: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """Describe the fields of a component that are set, `but` some: a line of its plain fields, under the label "", and
    a line for each component that it holds, under the name of its field. One of whom there is a word to say is among
    the first."""
    plain, rows = [], []
    for name, value in (each for each in list_set_fields(spec) if each[0] not in but):
        if isinstance(value, Spec):
            said = say_component(value)
            if " · " in said:
                rows.append(_label_row(spell(name), value, said))
            else:
                plain.append(f"norm {said}" if name == "norm" else say_held(name, value))
        elif isinstance(value, list | tuple | dict) and any(isinstance(each, Spec) for each in value):
            rows.append((spell(name), f"{len(value)}"))
        else:
            plain.append(say_field(name, value))
    return (*([("", " · ".join(plain))] if plain else []), *rows)


def _label_row(name: str, value: Spec, said: str) -> tuple[str, str]:
    """Label what a component is with the name of its field, and a node's with that of its component as well: what is
    said of `shared: {expert: …}` is of a shared expert."""
    inner = next((field for field, each in list_set_fields(value)[:1] if isinstance(each, Spec)), "")
    if not isinstance(value, Node) or not inner or not said.startswith(f"{spell(inner)} "):
        return name, said
    return f"{name} {spell(inner)}", said.removeprefix(f"{spell(inner)} ")
