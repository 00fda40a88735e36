# B batch, T queries, S keys, H heads
"""Positions as a bias on the scores: a slope per head, or a learned value for each head and bucket of distances."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.kernels.score_bias import Bias, Given, Placed
from zoo.lazy import Tensor, torch
from zoo.model.position.base import Position, WithAbsolute
from zoo.model.position.constants import place_constants
from zoo.spec import Embedding

if TYPE_CHECKING:
    from zoo.model.step import Weights


class ALiBi(Position, kind="alibi"):
    """A bias on the scores that falls linearly with distance, with a slope for each head (Press et al., 2021):
    2^(−max_bias·h/H), h = 1…H.

    If H is not a power of two, the heads have the slopes of the next lower power, then every other slope of the next
    higher one (MPT's code starts from the higher power and gets the same).
    """

    max_bias: PositiveFloat = 8.0
    """Exponent of the last head's slope, 2^(−max_bias)."""
    scale: PositiveFloat = 1.0
    """Factor of the bias (Falcon: 1/√head_dim)."""
    rounded: bool = False
    """Whether slope × key position is rounded to bfloat16, as Falcon was trained."""

    def slopes_of(self, n_heads: int) -> list[float]:
        """Compute the slope of each of `n_heads` heads."""

        def series(count: int) -> list[float]:
            return [2 ** (-self.max_bias * (head + 1) / count) for head in range(count)]

        whole = 2 ** math.floor(math.log2(n_heads))
        return series(whole) + series(2 * whole)[::2][: n_heads - whole]

    @property
    def bias_kind(self) -> str:  # type: ignore[override]
        return "fixed" if self.rounded else "alibi"

    def bias(self, m: Weights, n_heads: int, queries: Tensor, keys: Tensor, causal: bool, read: Any = None) -> Bias:
        slopes = place_constants(tuple(self.slopes_of(n_heads)), keys.device)
        if self.rounded:  # by key alone: a term of the query's position cancels in the softmax
            products = slopes.to(torch.bfloat16)[:, None] * keys.to(torch.bfloat16)[..., None, :]  # B|- H S
            return Given((products.float() * self.scale)[..., None, :])  # B|- H 1 S
        return Sloped(queries, keys, slopes * self.scale)


class Sloped(Placed):
    """The bias −slope·|i − j| on the score of query i and key j."""

    def __init__(self, queries: Tensor, keys: Tensor, slopes: Tensor) -> None:
        super().__init__(queries, keys, slopes.shape[0])
        self.slopes = self.each = slopes

    def of(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return -self.each[head] * (query - key).abs().float()


class T5Buckets(WithAbsolute, kind="t5"):
    """A learned bias for each head and bucket of distances: a bucket for each near distance, buckets on a logarithmic
    scale for far ones, and one for all beyond `max_distance` (Raffel et al., 2020, §2.1).

    In bidirectional attention half of the buckets are for later keys.
    """

    bias_kind: ClassVar[str] = "learned"

    n_heads: PositiveInt
    """Number of heads of the attention: columns of the table."""
    n_buckets: PositiveInt = 32
    """Number of buckets of distances, an even number. Of the buckets for one direction, half hold a single distance
    each."""
    max_distance: PositiveInt = 128
    """Distance, in tokens, beyond which all share one bucket."""
    layerwise: bool = False
    """Whether each layer has its own table (UMT5; Chung et al., 2023); otherwise all layers share one (T5)."""

    def __post_init__(self) -> None:
        if self.absolute is not None and (self.layerwise or not self.absolute.embeds):
            found = "layerwise" if self.layerwise else f"'{self.absolute.kind}', which adds nothing to it"
            raise ValueError(
                f"absolute is a scheme at the embedding, found {found} (learned, one table for all layers)"
            )
        if self.n_buckets < 4 or self.n_buckets % 2 or self.max_distance <= self.n_buckets // 2:
            found = f"n_buckets={self.n_buckets}, max_distance={self.max_distance}"
            raise ValueError(f"{found} (an even number of buckets from 4 up, and max_distance more than half of it)")

    @property
    def per_layer(self) -> bool:  # type: ignore[override]
        return self.layerwise

    @property
    def bias_heads(self) -> int:  # type: ignore[override]
        return self.n_heads

    def parts(self, d_model: int) -> dict[str, Any]:
        absolute = {"absolute": self.absolute} if self.absolute else {}
        return {"table": Embedding(self.n_buckets, self.n_heads), **absolute}

    def buckets(self, key: Tensor, query: Tensor, causal: bool) -> Tensor:
        """Find the bucket of each distance key − query [T, S], of token indices that broadcast with one another."""
        distance = key - query  # made here: a caller might keep what it passes, and the peak would be higher
        count, later = self.n_buckets, 0
        if causal:
            distance = -distance.clamp(max=0)
        else:
            count //= 2
            later = (distance > 0).long() * count
            distance = distance.abs()
        exact = count // 2
        far = (distance.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact) * (count - exact)
        return later + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=count - 1))

    def bias(self, m: Weights, n_heads: int, queries: Tensor, keys: Tensor, causal: bool, read: Any = None) -> Bias:
        return Bucketed(self, m.table, queries, keys, causal)


class T5Globals(T5Buckets, kind="t5_globals"):
    """T5's buckets with a second table, `globals`, for the distances between a token's block and other blocks (Guo et
    al., 2022, LongT5). Transient-global attention reads it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layerwise:
            raise ValueError("layerwise: transient-global attention has one table for all layers (false)")

    def parts(self, d_model: int) -> dict[str, Any]:
        return {**super().parts(d_model), "globals": Embedding(self.n_buckets, self.n_heads)}


class Bucketed(Placed):
    """A bias read from a table, by head and by the bucket of the distance j − i."""

    def __init__(self, scheme: T5Buckets, table: Any, queries: Tensor, keys: Tensor, causal: bool) -> None:
        super().__init__(queries, keys, scheme.n_heads, learned=table.weight.requires_grad)
        self.scheme, self.table, self.causal = scheme, table, causal

    def of(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return self.table.weight[self.scheme.buckets(key, query, self.causal), head]

    def draw(self) -> Tensor:
        # One look-up for each pair of tokens gives the values of all heads; its gradient is an embedding's.
        if self.keys.ndim == 2:
            buckets = self.scheme.buckets(self.keys[:, None, :], self.queries[:, :, None], self.causal)  # B T S
            return self.table(buckets).permute(0, 3, 1, 2)  # B H T S
        buckets = self.scheme.buckets(self.keys[None, :], self.queries[:, None], self.causal)  # T S
        return self.table(buckets).permute(2, 0, 1)[None]  # 1 H T S
