# B batch, T queries, S keys, E pools, H heads, C head width, D model width, Q width of what queries are made of
"""An indexer that scores pools of consecutive tokens, each by the mean of its tokens' keys."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from zoo.kernels.choosing import Pools, score_keys, take_pools
from zoo.lazy import Tensor, torch
from zoo.model.attention.indexer import NormedIndexer, Rotate, check_rotation
from zoo.model.attention.pooled_indexer import ByPools
from zoo.model.position.base import Position
from zoo.model.position.rotary import rotate_part

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask
    from zoo.kernels.view.slots import SlotMapping
    from zoo.model.context import ForwardContext
    from zoo.model.step import Step, Weights

POOL_TABLES = "pool_tables"
"""Key of `Step.extra`: the rotary tables of the pools' keys."""


class MeanPooled(ByPools, NormedIndexer, kind="mean_pooled"):
    """An indexer over pools of tokens (Qwen Team, 2026, Qwen4-Exp's QSA): choose the `top_k` // `pool` pools of highest
    Σ_h relu(q_h·k̄) among the complete pools that a query sees. A query also attends to its own incomplete pool.

    k̄ is the norm of the mean of the tokens' keys k = x·W_k, and q = norm(x·W_q). The leading channels of both are
    rotated by attention's own angles; k̄ has the position of the pool's first token. Keys k are cached, and k̄ is
    computed from them in each pass. Pools are counted from a text's start.
    """

    n_heads: PositiveInt = 32
    """Number of the indexer's heads, whose scores are added up."""
    top_k: PositiveInt = 2048
    """Number of keys in the pools that a query chooses, a multiple of `pool`."""
    pool: PositiveInt = 16
    """Size of a pool, in tokens."""

    def check(self, position: Position, width: int, n_heads: int) -> None:
        check_rotation(self, position, width)
        if position.reads_length:
            what = f"position '{position.kind}' turns with the length of the row"
            raise ValueError(f"{what}, and a pool's key is turned by its place (rope, or none)")

    def attended(self) -> dict[str, tuple[int, ...]]:
        return {"index": (self.head_dim * self.pool,)}

    def prepare(self, context: ForwardContext, step: Step, slots: SlotMapping | None, rotate: Rotate) -> None:
        """Make the rotary tables of the pools' keys, each at the position of its first token, for the largest possible
        number of pools."""
        n_keys = context.total if slots is None or slots.table is None else slots.n_keys
        places = torch.arange(n_keys // self.pool, device=context.device)[None] * self.pool  # 1 E
        step.extra[POOL_TABLES] = rotate(places)

    def choose(self, m: Weights, x: Tensor, latent: Tensor, step: Step, n_heads: int) -> None:
        with torch.no_grad():
            q = m.index_q_norm(m.index_q(latent).unflatten(-1, (self.n_heads, self.head_dim)))  # B T H C
            q = rotate_part(q, step.tables, interleaved=False)
            (k,) = step.remember(index=m.index_k(x))  # B S C
            how = {"norm": m.index_k_norm, "tables": step.extra[POOL_TABLES], "top_k": self.top_k, "pool": self.pool}
            step.choose(partial(choose_mean_pools, **how), k, q)


def choose_mean_pools(q: Tensor, k: Tensor, mask: Mask, *, top_k: int, pool: int, norm: Any, tables: Any) -> Tensor:
    """Choose keys by pools of `pool` tokens of a row or document, with scores Σ_h relu(q_h·k̄): q [B, T, H, C] and k
    [B, S, C] → True for a chosen key [B, T, S] (see `zoo.kernels.choosing.choose_pools`). `tables` hold the rotary
    cosines and sines of a text's pools, in the pools' order; None rotates nothing."""
    with torch.no_grad():
        if k.shape[1] < pool:
            return mask.dense(q.device)[:, 0]
        pools = Pools(mask, k.shape[1], pool, q.device)
        mean = norm(take_pools(k, pools.last, pool).float().mean(2).to(k.dtype))[:, :, None]  # B E 1 C
        if tables is not None:
            places = mask.place_keys(q.device)
            number = places.expand(pools.last.shape[0], -1).gather(-1, pools.last) // pool  # B|1 E
            tables = tuple(each[0][number] for each in tables)  # B|1 E R/2 each
        pooled = rotate_part(mean, tables, interleaved=False)[:, :, 0]
        return pools.choose(score_keys(q, None, pooled), top_k // pool)
