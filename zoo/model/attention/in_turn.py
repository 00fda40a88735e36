# B batch, T tokens, D model width
"""Two mixers in one layer: attention with weights that all layers of a kind share, then a recurrent mixer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from zoo.model.attention.gqa import GQA
from zoo.model.attention.two_mixers import TwoMixers

BLOCK = "shared_attention"
"""The kind of block that can hold both mixers."""


class JoinedGQA(GQA, kind="joined_gqa"):
    """Grouped-query attention over [x ; e], the stream concatenated with the embedding's output, 2·D wide; the output
    is D wide (Glorioso et al., 2024, Zamba)."""

    needs_block: ClassVar[str] = BLOCK
    memory: ClassVar[None] = None  # type: ignore[misc]

    def parts(self, d_model: int) -> dict[str, Any]:
        own = super().parts(2 * d_model)
        return own | {"o": replace(own["o"], d_out=d_model)}


class InTurn(TwoMixers, kind="in_turn"):
    """Attention, then a recurrent mixer that reads its result. The block runs both; this component only states their
    caches, states and masks."""

    needs_block: ClassVar[str] = BLOCK

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.softmax, JoinedGQA):
            raise ValueError(f"softmax: '{self.softmax.kind}' does not read the embedding's output (joined_gqa does)")
        if self.softmax.position.per_layer:
            raise ValueError(f"softmax.position: '{self.softmax.position.kind}' has weights in each layer (rope, none)")
