# B batch, T tokens, C head width
"""Indexers of sparse attention that choose pools of tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from zoo.kernels.choosing import choose_pools
from zoo.lazy import Tensor, torch
from zoo.model.attention.indexer import TopKIndexer
from zoo.model.norm import LayerNorm, WholeNorm
from zoo.spec import Linear, Sized, Weight

if TYPE_CHECKING:
    from zoo.model.step import Step, Weights


class ByPools:
    """Base of indexers over pools of `pool` tokens: they choose `top_k` // `pool` pools, and a query also sees its own
    pool while it is incomplete. Raises ValueError unless `pool` divides `top_k`."""

    top_k: PositiveInt
    pool: PositiveInt

    def __post_init__(self) -> None:
        if self.top_k % self.pool:
            raise ValueError(f"top_k={self.top_k} is not a multiple of pool={self.pool}, whose tokens go together")

    @property
    def most_keys(self) -> int:
        return self.top_k

    @property
    def granule(self) -> int:
        return self.pool

    @property
    def adds_tail(self) -> bool:
        return True

    @property
    def pooled(self) -> int:
        return self.pool


class PooledIndexer(ByPools, TopKIndexer, kind="pooled"):
    """A lightning indexer over pools of tokens (GLM-5.3, 2026): choose the `top_k` // `pool` best of the complete pools
    that a query sees. A query also attends to its own incomplete pool.

    A pool's key is the sum of its tokens' keys k = norm(x·W_k), weighted for each channel by a softmax over x·W_g + a
    learned bias of the token's place in the pool. Nothing is rotated. Keys and x·W_g are cached. Pools are counted from
    a text's start.
    """

    n_heads: PositiveInt = 32
    """Number of the indexer's heads, whose scores are added up."""
    pool: PositiveInt = 16
    """Size of a pool, in tokens, a divisor of `top_k`."""
    norm: WholeNorm = LayerNorm(eps=1e-6)
    """Norm of the tokens' keys."""

    def weights(self, d_model: int, q_width: int) -> dict[str, Any]:
        return {
            **super().weights(d_model, q_width),
            "index_k": Linear(d_model, self.head_dim),
            "index_norm": Sized(self.norm, self.head_dim),
            "index_gate": Linear(d_model, self.head_dim, precise=True),
            "index_places": Weight((self.pool, self.head_dim)),
        }

    def cache(self) -> dict[str, tuple[int, ...]]:
        return {"index": (2 * self.head_dim,)}

    def attended(self) -> dict[str, tuple[int, ...]]:
        return {"index": (2 * self.head_dim * self.pool,)}

    def make_keys(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        return torch.cat((m.index_norm(m.index_k(x)), m.index_gate(x)), -1)

    def picker(self, m: Weights) -> Any:
        return partial(choose_pools, places=m.index_places, top_k=self.top_k)
