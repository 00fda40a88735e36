# B batch, T queries, S keys, D model width, V vocabulary
"""What travels beside the hidden states into a layer: the moment, as opposed to numbers (Spec) and weights (Layer)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.generation.cache import LayerCache, Plan
    from zoo.mask import Mask


@dataclass
class Step:
    """One forward pass as seen by one layer. Layers of one kind share all but their cache and their losses."""

    mask: Mask
    kernel: str = "auto"
    tables: Any = None  # what the position scheme rotates queries and new keys with
    bias: Tensor | None = None  # B|1 H T S, added to the scores
    plan: Plan | None = None  # where new tokens go in this kind's caches
    cache: LayerCache | None = None
    losses: list[tuple[str, Tensor]] = field(default_factory=list)  # what a router adds to the objective

    def for_layer(self, cache: LayerCache | None) -> Step:
        """This step for one layer, with a list of losses of its own so that equal layers compile once."""
        return replace(self, cache=cache, losses=[])

    def remember(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Each new tensor [B, T, …] joined with what the cache holds of earlier tokens: [B, S, …], in the order
        given."""
        if self.cache is None:
            return tuple(new.values())
        assert self.plan is not None
        return self.cache.append(self.plan, new)


@dataclass
class Output:
    """What a forward gives: `hidden` [B, T, D] after the final norm, `logits` [B, T, V], and a router's weighted
    `losses`."""

    hidden: Tensor
    logits: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
