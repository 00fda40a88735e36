# B batch, T tokens, D model width
"""The two mixers of a layer in which a recurrent one comes after attention that its kind of layer shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from zoo.model.attention.gqa import GQA
from zoo.model.attention.two_mixers import TwoMixers

BLOCK = "shared_attention"
"""The kind of block that has a place for them."""


class JoinedGQA(GQA, kind="joined_gqa"):
    """Grouped-query attention of [x ; e], the stream beside the embedding's output, 2·D wide; what it gives is D wide
    (Glorioso et al., 2024, Zamba)."""

    needs_block: ClassVar[str] = BLOCK

    @property
    def memory(self) -> None:
        return None

    def parts(self, d_model: int) -> dict[str, Any]:
        own = super().parts(2 * d_model)
        return own | {"o": replace(own["o"], d_out=d_model)}


class InTurn(TwoMixers, kind="in_turn"):
    """Attention, and a recurrent mixer that reads what came of it. Neither is run by this: the block does so, and asks
    here what a layer keeps and sees."""

    needs_block: ClassVar[str] = BLOCK

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.softmax, JoinedGQA):
            raise ValueError(f"softmax: '{self.softmax.kind}' does not read the embedding's output (joined_gqa does)")
        if self.softmax.position.per_layer:
            raise ValueError(f"softmax.position: '{self.softmax.position.kind}' has weights in each layer (rope, none)")
