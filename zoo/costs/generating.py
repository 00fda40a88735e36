# S tokens of a sequence, B sequences, t = tp, p = pp
"""What generating takes of one GPU's memory: weights, cache, and the widest moment of reading the prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zoo.costs.cache import kv_cache
from zoo.costs.parallel import Stage, stages
from zoo.costs.rows import tabulate
from zoo.costs.setup import DTYPES, Setup
from zoo.errors import ConfigError


def generating(spec: Any, setup: Setup) -> dict[str, int]:
    """Bytes on the rank that needs most: `weights`, `kv_cache`, `prefill`, and `total`, their sum.

    Tensor parallelism leaves a rank its heads, its part of each feed-forward and of the vocabulary (and all of MLA's
    latent); a pipeline its layers; context parallelism its tokens. `prefill` is an estimate, of all prompts read at
    once: the residual stream, which every rank has whole, a norm's and a sub-layer's output, and the widest
    sub-layer's inner values, of which a rank has its part.

    Raises ConfigError for a model that generates nothing, and for dimensions that the ranks do not divide.
    """
    if not any(tower.causal for tower in spec.towers().values()):
        raise ConfigError("train: this model generates nothing, so only training it can be fitted (--train)")
    return max((_on(stage, setup) for stage in stages(spec, setup)), key=lambda rank: rank["total"])


def _on(stage: Stage, setup: Setup) -> dict[str, int]:
    tokens = -(-setup.batch * setup.tokens(stage) // setup.cp)
    inner = max(widest(tower) for tower in stage.towers().values())
    parts = {
        "weights": round(stage.params * DTYPES[setup.dtype]),
        "kv_cache": kv_cache(stage, replace(setup, context=-(-setup.tokens(stage) // setup.cp)))["bytes"],
        "prefill": round(tokens * (3 * stage.d_model + inner) * DTYPES[setup.dtype]),
    }
    return {**parts, "total": sum(parts.values())}


def widest(spec: Any) -> int:
    """Most values that one token's pass through a single sub-layer holds at once: the outputs of its matrix
    products."""
    sums: dict[Any, int] = {}
    for row in tabulate(spec).parts:
        part, slot = row.part, (row.where, row.kind, row.slot)
        if part.flops and row.kind is not None:
            width = getattr(part, "d_out", 0) or part.of.d_out * part.active_count  # type: ignore[attr-defined]
            sums[slot] = sums.get(slot, 0) + width
    return max(sums.values(), default=0)
