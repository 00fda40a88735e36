# B batch, T queries, S keys, D model width, V vocabulary
"""What a component's `forward` takes beside the hidden states: its weights by name, and the step: masks, positions and
caches of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from zoo.generation.cache import CacheLayout, LayerCache
    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask


class Weights(Protocol):
    """The parts of a component under the names that its `parts` gives them: its Layer, which holds a tensor or a module
    for each, or shadows of these where activations are priced."""

    def __getattr__(self, name: str) -> Any: ...


@dataclass
class Step:
    """The inputs of one layer in one forward pass, beside its hidden states. Layers of one kind share all but their
    cache and their losses."""

    mask: Mask
    kernel: str = "auto"
    positions: Tensor | None = None  # B|1 T, of the queries
    index: tuple[Tensor, Tensor] | None = None  # place in the row, pads included: [T] of queries, [S] of keys
    tables: Any = None  # cosines and sines, or what else the position scheme rotates queries and new keys with
    bias: Bias | None = None  # added to the scores
    real: Tensor | None = None  # B T, True for a token that is no padding; None when all are real
    documents: Tensor | None = None  # B T, the number of each token's packed document
    first: bool = True  # whether nothing came before these tokens
    layout: CacheLayout | None = None  # the cache slots that new tokens go to, in layers of this kind
    cache: LayerCache | None = None
    memory: Tensor | None = None  # B S D, what cross-attention reads in place of the tokens themselves
    cross: Step | None = None  # the step of this layer's cross-attention
    extra: dict[str, Any] = field(default_factory=dict)  # what `Attention.prepare` made once for all layers of a kind
    losses: list[tuple[str, Tensor]] = field(default_factory=list)  # a router's, to be added to the objective

    def for_layer(self, cache: LayerCache | None) -> Step:
        """The step of one layer: its cache, and an empty list of losses so that equal layers compile once."""
        cross = self.cross
        if cross is not None:
            cross = replace(cross, cache=None if cache is None else cache.cross)
        return replace(self, cache=cache, cross=cross, losses=[])

    def remember(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Append new tensors [B, T, …] to the cache; give each behind its earlier tokens [B, S, …], in order."""
        if self.cache is None:
            return tuple(new.values())
        assert self.layout is not None
        return self.cache.append(self.layout, new)

    def recall(self, compute: Callable[[Tensor], tuple[Tensor, ...]], *names: str) -> tuple[Tensor, ...]:
        """Keys and values that `compute` makes of the memory: computed once, then read from the cache."""
        assert self.memory is not None
        memory = self.memory
        return compute(memory) if self.cache is None else self.cache.recall(lambda: compute(memory), names)

    def state(self, name: str) -> Tensor | None:
        """A recurrent mixer's state after all earlier tokens [B, …]; None where nothing came before."""
        return None if self.cache is None or self.first else self.cache.states[name]

    def hold(self, **states: Tensor) -> None:
        """Keep a recurrent mixer's states for the next tokens, where there is a cache."""
        if self.cache is not None:
            for name, value in states.items():
                self.cache.states[name].copy_(value)


@dataclass
class Output:
    """What a forward gives: `hidden` [B, T, D] after the final norm, `logits` [B, T, V], a router's weighted `losses`,
    `pooled` [B, …] where the model has a pooler (a vector or logits for a row), and the encoder's `memory` [B, S, D]
    where there is one."""

    hidden: Tensor
    logits: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None
    memory: Tensor | None = None
