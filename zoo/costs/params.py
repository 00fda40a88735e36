"""Parameters, read from the parts: total, met by one token, and by component."""

from collections import Counter
from typing import Any

from zoo.spec import Embedding, Spec, walk


def count(spec: Any) -> dict[str, Any]:
    """`total`, `active` (experts at top_k), `embedding` (tables and a head of its own), `non_embedding`,
    `by_component`."""
    total = active = 0
    by_component: Counter[str] = Counter()
    for path, owner, part, copies in walk(spec, spec.d_model):
        total += part.params * copies
        active += part.active * copies
        by_component[component(path, owner)] += part.params * copies
    tables = sum(p.params * n for _, _, p, n in walk(spec, spec.d_model) if isinstance(p, Embedding))
    embedding = tables + by_component["head"]
    return {
        "total": total,
        "active": active,
        "embedding": embedding,
        "non_embedding": total - embedding,
        "by_component": {name: held for name, held in by_component.items() if held},
    }


TOWERS = ("encoder", "decoder")
"""Of an encoder-decoder; what both hold of a component is counted together."""


def component(path: str, owner: Spec) -> str:
    """The component a part is counted under: inside a layer its attention, its feed-forward's experts, router and so
    on."""
    steps = path.split(".")
    if steps[0] in TOWERS:
        return component(".".join(steps[1:]), owner)
    if steps[0] != "blocks":
        return "norm" if owner.axis == "norm" and steps[0] != "embedding" else steps[0]
    slot = steps[2]
    if slot == "ffn" and len(steps) > 4 and steps[3] in ("experts", "router", "shared"):
        return {"experts": "experts", "router": "router", "shared": "shared_expert"}[steps[3]]
    return "norm" if slot.endswith("norm") else slot
