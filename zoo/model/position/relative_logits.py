# B batch, T queries, H heads, R distances, D model width
"""Relative positions as a logit of each query for each distance, separate in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.kernels.score_bias import Bias, ByDistance
from zoo.lazy import Tensor
from zoo.model.norm import WholeNorm, give_weights
from zoo.model.position.base import Position
from zoo.spec import Linear, Sized, split

if TYPE_CHECKING:
    from zoo.model.step import Weights


class RelativeLogits(Position, kind="relative_logits"):
    """A bias r_i·p[i − j] on the score of query i and key j, for distances i − j from 0 to `extent` − 1; beyond them
    there is no bias (Shaw et al., 2018, with queries of their own; Thinking Machines, 2026, Inkling).

    r_i is a second query of each head, `width` channels of a projection of the layer's input; p are `extent` learned
    vectors, shared by all heads. Each layer has its own weights. Tempering multiplies r too. Context parallelism is
    refused.
    """

    per_layer: ClassVar[bool] = True
    bias_kind: ClassVar[str] = "learned"
    reads_input: ClassVar[bool] = True

    n_heads: PositiveInt
    """Number of heads of the attention, each with a query r of its own."""
    width: PositiveInt = 16
    """Channels of r and p."""
    extent: PositiveInt = 1024
    """Number of distances, in tokens, that have a bias."""
    norm: WholeNorm | None = None
    """Norm of each head's r, with a weight for each head (Inkling 2, 2026)."""

    def __post_init__(self) -> None:
        if self.norm is not None:
            give_weights(self.norm, self.n_heads)

    @property
    def bias_heads(self) -> int:  # type: ignore[override]
        return self.n_heads

    def check(self, head_dim: int) -> None:
        raise ValueError("position 'relative_logits' reads a layer's input, which gqa alone gives it (choose another)")

    def parts(self, d_model: int) -> dict[str, Any]:
        return {
            "query": Linear(d_model, self.n_heads * self.width),
            **({"norm": Sized(give_weights(self.norm, self.n_heads), self.width)} if self.norm else {}),
            "distances": Linear(self.width, self.extent, uses=self.n_heads),
        }

    def shard(self, ranks: int) -> RelativeLogits:
        return split(self, ranks, equal=("n_heads",))

    def read(self, m: Weights, x: Tensor) -> Tensor:
        """Compute the logits of each head's query for every distance [B, T, H, R]."""
        r = m.query(x).unflatten(-1, (self.n_heads, self.width))
        return m.distances(m.norm(r) if self.norm else r)

    def bias(self, m: Weights, n_heads: int, queries: Tensor, keys: Tensor, causal: bool, read: Any = None) -> Bias:
        return ByDistance(read, queries, keys)
