"""Parameters, read from the parts: total, met by one token, by component and by kind of layer."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from zoo.spec import Buffer, Embedding, Linear, Part, Spec, Tied, walk

Parts = list[tuple[str, Spec, Part, int]]
"""What `walk` yields: a part's path, its owner, the part, and how often it is stored."""

TOWERS = ("encoder", "decoder")
"""Of an encoder-decoder; what both hold of a component is counted together."""

TOKENS = "embedding.tokens"
"""Where a tower's token table is."""


def count(spec: Any) -> dict[str, Any]:
    """Parameters as they are stored: a tied weight once, layers that share theirs once.

    `active` is what one token meets: experts at top_k, and whole tables, though of each it looks up a row.
    `active_without_input_table` leaves out the token table, unless a head is tied to it and so multiplies with all of
    it (the literature has both: 37.6 and 36.6 B of DeepSeek-V3). `embedding` is the tables of tokens, positions and
    biases, and a head's matrix of its own; `buffers` are values that are saved and not trained, in no other figure.
    `by_layer_kind` says for each kind how many `layers` there are, how many of them have weights of their own
    (`stored`, one where layers share), and what all these hold.
    """
    parts: Parts = list(walk(spec, spec.d_model))
    by_component: Counter[str] = Counter()
    for path, owner, part, copies in parts:
        by_component[component(path, owner)] += part.params * copies
    total, active = by_component.total(), _active(parts)
    embedding = sum(part.params * n for path, _, part, n in parts if isinstance(part, Embedding) or is_output(path))
    return {
        "total": total,
        "active": active,
        "active_without_input_table": active - _looked_up(parts),
        "embedding": embedding,
        "non_embedding": total - embedding,
        "buffers": sum(_values(part) * copies for _, _, part, copies in parts if isinstance(part, Buffer)),
        "by_component": {name: held for name, held in by_component.items() if held},
        "by_layer_kind": _by_layer_kind(spec, parts),
    }


def component(path: str, owner: Spec) -> str:
    """The component a part is counted under: inside a layer its attention, its feed-forward's experts, router and so
    on. A norm within attention or the embedding is counted there, any other among the norms."""
    steps = below(path)
    if steps[0] != "blocks":
        return "norm" if owner.axis == "norm" and steps[0] != "embedding" else steps[0]
    slot = steps[2]
    if slot == "ffn" and len(steps) > 4 and steps[3] in ("experts", "router", "shared"):
        return {"experts": "experts", "router": "router", "shared": "shared_expert"}[steps[3]]
    return "norm" if slot.endswith("norm") else slot


def below(path: str) -> list[str]:
    """The steps of a part's path from its tower down."""
    steps = path.split(".")
    return steps[1:] if steps[0] in TOWERS else steps


def is_output(path: str) -> bool:
    """Whether a part is a head's product with the vocabulary."""
    return below(path) == ["head", "out"]


def _active(parts: Iterable[tuple[str, Spec, Part, int]]) -> int:
    return sum(part.active * copies for _, _, part, copies in parts)


def _values(part: Part) -> int:
    return sum(math.prod(shape) for shape in part.shapes().values())


def _looked_up(parts: Parts) -> int:
    """Parameters of token tables that no head is tied to."""
    tables = {path: part for path, _, part, _ in parts if path.endswith(TOKENS)}
    held = {path: part.params for path, part in tables.items() if isinstance(part, Embedding)}
    for path, _, part, _ in parts:
        if isinstance(part, Tied) and isinstance(part.of, Linear):
            held.pop(_source(path, part, tables), None)
    return sum(held.values())


def _source(path: str, tied: Tied, tables: dict[str, Part]) -> str:
    """Where the table is that a part is tied to: in the nearest model around it that has one, which may itself be tied
    to another's."""
    steps = path.split(".")
    for depth in range(len(steps) - 1, -1, -1):
        source = ".".join([*steps[:depth], tied.to])
        table = tables.get(source)
        if table is not None and source != path:
            return _source(source, table, tables) if isinstance(table, Tied) else source
    raise AssertionError(f"{path} is tied to {tied.to}, which no model around it has")


def _by_layer_kind(spec: Any, parts: Parts) -> dict[str, dict[str, int]]:
    """Of an encoder-decoder the kinds go by tower and name: `encoder.layer`."""
    kinds = {}
    for name, tower in spec.towers().items():
        tower_path = f"{name}." if name else ""
        stored = tower.stack.stored()
        for kind in tower.blocks:
            prefix = f"{tower_path}blocks.{kind}."
            inside = [each for each in parts if each[0].startswith(prefix)]
            kinds[f"{tower_path}{kind}"] = {
                "layers": tower.pattern.count(kind),
                "stored": stored.count(kind),
                "total": sum(part.params * copies for _, _, part, copies in inside),
                "active": _active(inside),
            }
    return kinds
