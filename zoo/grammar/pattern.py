"""Read the kinds of layer (`layers`) and the kind of each layer (`pattern`)."""

from __future__ import annotations

import re
from typing import Any

from zoo.errors import did_you_mean, name_options
from zoo.grammar.interpolation import Scope, to_plain
from zoo.grammar.patches import lay_patch

PLAIN = "layer"
"""The name, in a pattern, of layers that are the model as it stands, without a patch."""

MOST_LAYERS = 100_000
"""Maximum layers of a tower. A pattern is expanded to a name for each layer, so a typing error could fill memory."""


RULE = ("every", "is", "else")
"""Keys of a pattern given as a rule, `{every: 4, is: full}`."""

MOST_NAMES = 10_000
"""Maximum entries of a pattern's list: OmegaConf, which composes it, takes 0.3 ms for each."""


def get_kinds(root: Scope) -> dict[Any, Any]:
    """Return the patches of the kinds of layer; empty if `layers` is no mapping (which `read_pattern` reports)."""
    layers = root.get("layers")
    return layers.node if isinstance(layers, Scope) and layers.is_mapping else {}


def read_pattern(root: Scope) -> tuple[list[str], list[str]]:
    """List the kind of each layer, first to last, and the faults found. `name*3` means three layers, and the list is
    repeated up to n_layers: `pattern: [local*2, layer]` with `n_layers: 4` is local, local, layer, local. The rule
    `{every: 4, is: full}` means [layer*3, full]."""
    n_layers, kinds, layers = root.read("n_layers"), [str(name) for name in get_kinds(root)], root.get("layers")
    if layers is not None and not (isinstance(layers, Scope) and layers.is_mapping):
        return [PLAIN], [f"layers: is {to_plain(layers)!r}, not a mapping of names to patches of the model's keys"]
    if n_layers is None and "n_layers" not in root.node:
        return [PLAIN], ["n_layers: is missing (a whole number above 0: n_layers: 8)"]
    if not isinstance(n_layers, int) or isinstance(n_layers, bool) or n_layers < 1:
        return [PLAIN], [f"n_layers: must be a whole number above 0, found {n_layers!r}"]
    if n_layers > MOST_LAYERS:
        return [PLAIN], [f"n_layers: is {n_layers:,} (at most {MOST_LAYERS:,} would do)"]
    problems: list[str] = []
    pattern = root.read("pattern") or [PLAIN]
    if isinstance(pattern, list) and len(pattern) > MOST_NAMES:
        found = f"has {len(pattern):,} entries (at most {MOST_NAMES:,}; name*3 stands for three)"
        return [PLAIN], [f"pattern: {found}"]
    names = _read_names(pattern, kinds, problems)
    if not names:
        return [PLAIN], problems or ["pattern: is empty (name at least one layer)"]
    each = [names[index % len(names)] for index in range(n_layers)]
    unused = set() if problems else set(kinds).difference(each)  # a misspelt name may be that of any kind
    would = " (name it in pattern, or leave it out)"
    problems += [
        f"layers.{kind}: no layer is of this kind{did_you_mean(kind, set(each)) or would}"
        for kind in kinds
        if kind in unused
    ]
    return each, problems


def _read_names(pattern: object, kinds: list[str], problems: list[str]) -> list[str]:
    """Read the names of one repeat of the pattern."""
    if isinstance(pattern, dict):
        pattern = _read_rule(pattern, problems)
    names: list[str] = []
    for item in pattern if isinstance(pattern, list) else [pattern]:
        match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\*\s*(\d+))?\s*", str(item))
        if match is None:
            problems.append(f"pattern: cannot read {item!r} (a layer's name, or name*3)")
        elif match[1] not in (*kinds, PLAIN):
            hint = did_you_mean(match[1], kinds) or f" (layers has: {', '.join(kinds) or 'none'})"
            problems.append(f"pattern: no layer is named {match[1]!r}{hint}")
        elif len(match[2] or "") > 9 or len(names) + int(match[2] or 1) > MOST_LAYERS:
            problems.append(f"pattern: {item!r} makes too many layers (at most {MOST_LAYERS:,} would do)")
        else:
            names += [match[1]] * int(match[2] or 1)
    return names


def _read_rule(rule: dict[Any, Any], problems: list[str]) -> list[str]:
    """Read `{every: 4, is: full}` as [layer*3, full]; `else` names the other layers."""
    if strange := [str(key) for key in rule if key not in RULE]:
        problems.append(f"pattern.{strange[0]}: no such key{name_options(strange[0], RULE)}")
    every, kind = rule.get("every"), rule.get("is")
    if not isinstance(every, int) or isinstance(every, bool) or not 2 <= every <= MOST_LAYERS:
        problems.append(f"pattern.every: must be a whole number from 2 up, found {every!r} (every: 4, is: full)")
    elif not isinstance(kind, str):
        problems.append(f"pattern.is: must name a kind of layer, found {kind!r} (every: {every}, is: full)")
    else:
        return [f"{rule.get('else', PLAIN)}*{every - 1}", kind]
    return []


def lay_kind(root: Scope, name: str, problems: list[str]) -> Scope:
    """Lay a kind's patch over the model's keys: the result is the scope in which layers of that kind are resolved."""
    layers = root.get("layers")
    patch = layers.get(name) if isinstance(layers, Scope) and name in layers.keys else None
    if patch is None:
        return root
    return Scope(lay_patch(root.node, patch.node if isinstance(patch, Scope) else patch, f"layers.{name}", problems))
