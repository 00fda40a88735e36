"""Describe a component in a few words: its name and the fields that are set."""

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
"""Fields that are not shown: they do not characterise an architecture, or the figure shows them once elsewhere."""

WEIGHTS = ("selection_bias",)
"""Fields that are shown even at their defaults, because they stand for weights."""

SPELT = {"qk": "QK", "kv": "KV", "q": "Q", "k": "K", "v": "V", "o": "O", "id": "ID", "dt": "Δt", "ffn": "FFN"}
"""Words in field names that are spelt differently in text."""

NAMED = re.compile(r"([A-Z][^.:,()=·]{3,40}) \([^)]*\d{4}")
"""The name of an idea at the start of a docstring, before its source: `Grouped-query attention (Ainslie …, 2023)`."""


def name_component(spec: Spec) -> str:
    """Return a component's short name, from its class: GQA, RMSNorm, MoE. The extremes of GQA are MHA and MQA."""
    return _name_groups(spec, type(spec).__name__)


def _name_groups(spec: Spec, text: str) -> str:
    """Rename GQA at its extremes: multi-head with one query head per group, multi-query with one group."""
    heads, groups = getattr(spec, "n_heads", 0), getattr(spec, "n_kv_heads", None)
    word = "head" if groups == heads else "query" if groups == 1 else ""
    return text.replace("GQA", f"M{word[0].upper()}A").replace("Grouped-query", f"Multi-{word}") if word else text


def find_long_name(spec: Spec) -> str:
    """Return the full name at the start of a component's docstring; "" if there is none."""
    found = find_name(inspect.getdoc(type(spec)) or "")
    return _name_groups(spec, found) if found.lower() != name_component(spec).lower() else ""


def find_case(spec: Spec) -> str:
    """Return the name of the choice in conf/ that this component is a case of; "" if there is none. The choice's file
    sets numbers or booleans that differ from the defaults, and the component has the same values."""
    defaults = {each.name: each.default for each in spec.fields()}
    for name, stated in _list_cases(spec.axis, spec.kind):
        own = {key: value for key, value in stated.items() if key in defaults and defaults[key] != value}
        if own and all(getattr(spec, key) == value for key, value in own.items()):
            return name
    return ""


@functools.cache
def _list_cases(axis: str, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """List the named choices of a kind: the name in the file's first line, and the plain values that the file sets."""
    found = []
    for file in sorted((conf_dir() / axis).glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        name = find_name(text.removeprefix("# "))
        if name and file.stem != kind and f"\nkind: {kind}\n" in text:
            stated = read_conf(f"{axis}/{file.stem}").items()
            found.append((name, {k: v for k, v in stated if not isinstance(v, dict | list) and "${" not in str(v)}))
    return found


def find_name(text: str) -> str:
    """Return the name of an idea at the start of a text, before its source; "" if there is none."""
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
    """Whether a value is a position scheme that acts on the embedding alone. Such a scheme has its own box."""
    return isinstance(value, Position) and value.embeds and not value.inside


def _is_empty(value: Any) -> bool:
    """Whether a value is a node with fields, none of which is set."""
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
    """Describe a held component in one line: `RoPE · theta 500,000`."""
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
    """Describe a held component, after its field's name unless that repeats the component's name."""
    said = say_component(value, depth)
    same = name == value.axis != "position" and said != "none" and not isinstance(value, Node)
    return said if same else f"{spell(name)} {said}".strip()


def describe_fields(spec: Spec, but: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """Describe a component's set fields, except those in `but`, as rows (label, text). Plain fields and components of a
    single word share the first row, whose label is "". Each other component has a row under its field's name."""
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
    """Make the row (label, text) of a held component. The label is its field's name; a node that begins with a
    component adds that component's name: `shared: {expert: …}` becomes `shared expert`."""
    inner = next((field for field, each in list_set_fields(value)[:1] if isinstance(each, Spec)), "")
    if not isinstance(value, Node) or not inner or not said.startswith(f"{spell(inner)} "):
        return name, said
    return f"{name} {spell(inner)}", said.removeprefix(f"{spell(inner)} ")
