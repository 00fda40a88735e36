"""Evaluate `layers` and `pattern` of a family's YAML for each layer of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError
from zoo.families.expression import evaluate_tree, get_item, read_names
from zoo.untrusted.printable import quote

MOST_LAYERS = 2_000
"""Maximum number of layers of a published model: each layer is mapped to tensors."""
MOST_KINDS = 1_000
"""Maximum number of kinds of layer: each kind is compared with all others."""


def evaluate_layers(template: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate `layers` and `pattern` for each layer; layers with equal patches become one kind. Raises ConfigError for
    an unsupported kind, and for more than MOST_LAYERS layers or MOST_KINDS kinds."""
    kinds, pattern = template.get("layers") or {}, template.get("pattern")
    count = evaluate_tree(template.get("n_layers"), fields)
    if isinstance(count, int) and count > MOST_LAYERS:
        raise ConfigError(f"n_layers: is {quote(count)} (at most {MOST_LAYERS:,})")
    if not kinds and pattern is None:
        return {}
    if not isinstance(count, int) or count < 0:
        raise ConfigError(f"n_layers: is {quote(count)} (a whole number)")
    evaluate = _PatternReader(kinds, pattern, fields)
    layers: dict[str, Any] = {}
    names, families = [], []
    for index in range(count):
        kind, patch = evaluate.read(index)
        names.append(_named(kind, patch, layers))
        families.append(kind)
    there = {*names}
    used = {name: patch for name, patch in layers.items() if name in there and name != "layer"}
    return {"layers": used, "pattern": names, "_kinds": families}


class _PatternReader:
    """Evaluates `layers` and `pattern` for single layers. Expressions that do not read `layer` are evaluated once."""

    def __init__(self, kinds: Mapping[str, Any], pattern: Any, fields: Mapping[str, Any]) -> None:
        self.kinds, self.pattern, self.fields = kinds, pattern, fields
        self.apart = "layer" in read_names(pattern)
        self.stated = "layer" if pattern is None else None if self.apart else evaluate_tree(pattern, fields)
        self.patches: dict[str, Any] = {}

    def read(self, index: int) -> tuple[str, Any]:
        """Evaluate the kind of a layer and its patch. Raises ConfigError for an unsupported kind."""
        env = {**self.fields, "layer": index}
        kind = evaluate_tree(self.pattern, env) if self.apart else self.stated
        kind = get_item(kind, index, str(self.pattern).removeprefix("=")) if isinstance(kind, list) else kind
        kind = f"layer_{kind}" if isinstance(kind, int) else kind  # a number is a kind without a patch
        if not isinstance(kind, str) or (self.kinds and kind not in self.kinds and kind != "layer"):
            known = ", ".join(self.kinds)
            raise ConfigError(f"layer {index}: is of kind {quote(kind)}, which is not supported (one of: {known})")
        if kind in self.patches:
            return kind, self.patches[kind]
        stated = self.kinds.get(kind) or {}
        patch = evaluate_tree(stated, env)
        if "layer" not in read_names(stated):
            self.patches[kind] = patch
        return kind, patch


def _named(kind: str, patch: object, layers: dict[str, Any]) -> str:
    """Name a kind of layer after the family's kind, with a number if layers of the family's kind differ in their
    patches."""
    if kind == "layer" and not patch:
        return "layer"
    if len(layers) > MOST_KINDS:
        raise ConfigError(f"layers: are of more than {MOST_KINDS:,} kinds (fewer)")
    for count in range(1, len(layers) + 2):
        name = kind if count == 1 and kind != "layer" else f"{kind}_{count}"
        if layers.setdefault(name, patch) == patch:
            return name
    raise AssertionError("more kinds of layer than layers")
