# B batch, T queries, S keys, H heads, C head width
"""Sparse attention: choose the keys that each query attends to, by scores that are cheaper than attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask

AT_ONCE = 1 << 24
"""Maximum number of per-head scores in memory at once."""


def choose_keys(q: Tensor, weights: Tensor, k: Tensor, mask: Mask, top_k: int) -> Tensor:
    """Choose the `top_k` visible keys of each query with the largest Σ_h w_h·relu(q_h·k): q [B, T, H, C], weights [B,
    T, H] and k [B, S, C] → mask of chosen keys [B, T, S]. A query that sees fewer keys chooses all of them; the result
    may then be True for hidden keys, too."""
    with torch.no_grad():
        seen = mask.dense(q.device)[:, 0]  # B|1 T S
        if not k.shape[1]:
            return seen
        return take_best(score_keys(q, weights, k).masked_fill(~seen, -math.inf), top_k)


def choose_blocks(q: Tensor, k: Tensor, mask: Mask, *, size: int, count: int, local: int, n_heads: int) -> Tensor:
    """Choose the `count` best blocks of `size` keys for each query: q [B, T, G, C] and k [B, S, C] → mask of keys in
    chosen blocks [B, H, T, S], where G groups share the H = `n_heads` heads. A block's score is the maximum of q·k over
    its visible keys. A query's newest `local` blocks are always chosen. Blocks are counted from the first token of a
    query's document.

    With blocks of 4 and a document of 10 keys, a query that sees 7 of them has blocks 0 and 1; block 1 is the newest.
    """
    with torch.no_grad():
        seen = mask.dense(q.device)[:, 0]  # B|1 T S
        block = mask.place_keys(q.device) // size  # B|1 S
        scores = (q.float().flatten(1, 2) @ k.float().transpose(1, 2)).unflatten(1, q.shape[1:3])  # B T G S
        index = block[:, None, None].expand(scores.shape)
        hidden = scores.masked_fill(~seen[:, :, None], -math.inf)
        best = torch.full((*scores.shape[:3], -(-k.shape[1] // size)), -math.inf, device=q.device)
        best = best.scatter_reduce(-1, index, hidden, "amax")  # B T G N
        newest = block[:, None].masked_fill(~seen, 0).max(-1, keepdim=True)[0]  # B|1 T 1
        behind = newest - torch.arange(best.shape[-1], device=q.device)
        best = best.masked_fill(((behind >= 0) & (behind < local))[:, :, None], math.inf)
        chosen = take_best(best, count).gather(-1, index)  # B T G S
        return chosen.transpose(1, 2).repeat_interleave(n_heads // q.shape[2], 1)


def choose_pools(q: Tensor, weights: Tensor, k: Tensor, mask: Mask, top_k: int, places: Tensor) -> Tensor:
    """Choose keys like `choose_keys`, but by pools of P consecutive tokens of a row or document → mask of chosen keys
    [B, T, S]. k [B, S, 2C] holds keys followed by gates; `places` [P, C] are logits of the places in a pool.

    A pool's key is the mean of its tokens' keys, weighted per channel by a softmax over gate + place. Among the pools
    that a query sees completely, the `top_k` // P best are chosen with all their tokens. Visible tokens of incomplete
    pools are always chosen. With pools of 4, for example, token 6 of a row may choose the first pool (tokens 0 to 3),
    and always sees tokens 4 to 6.
    """
    with torch.no_grad():
        pool = places.shape[0]
        if k.shape[1] < pool:
            return mask.dense(q.device)[:, 0]
        pools = Pools(mask, k.shape[1], pool, q.device)
        keys, gates = take_pools(k, pools.last, pool).chunk(2, -1)  # B E P C
        pooled = ((gates.float() + places.float()).softmax(2) * keys.float()).sum(2)
        return pools.choose(score_keys(q, weights, pooled), top_k // pool)


class Pools:
    """The E pools of consecutive keys that T queries choose from. `last` [B|1, E] is each pool's last token; `whole`
    [B|1, T, E] is True where a query sees all of a pool."""

    def __init__(self, mask: Mask, n_keys: int, pool: int, device: torch.device) -> None:
        seen = mask.dense(device)[:, 0]  # B|1 T S
        self.last, real, number = find_pools(mask, n_keys, pool, device)  # B|1 E, B|1 E, B|1 S
        rows = max(seen.shape[0], self.last.shape[0])
        self.seen, self.shape = seen.expand(rows, -1, -1), (rows, seen.shape[1], -1)
        self.whole = self.seen.gather(-1, self.last[:, None].expand(self.shape)) & real[:, None]  # B|1 T E
        self.own = number[:, None].expand(rows, seen.shape[1], -1)  # B|1 T S: of each key

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """Choose the keys of the `count` best complete pools by scores [B, T, E], and all visible keys of incomplete
        pools. Returns a mask [B, T, S]."""
        best = take_best(scores.masked_fill(~self.whole, -math.inf), count) & self.whole
        ended = F.pad(self.whole, (0, 1)).gather(-1, self.own)  # whether a query sees the last token of a key's pool
        taken = F.pad(best, (0, 1)).gather(-1, self.own.expand(best.shape[0], -1, -1))
        return self.seen & (taken | ~ended)


def find_pools(mask: Mask, n_keys: int, pool: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pools of `pool` consecutive keys among `n_keys`, E = n_keys // pool at most. Returns the last token of
    each pool [B|1, E], whether the pool exists [B|1, E], and the number of each key's pool [B|1, S] (E for a key in
    none)."""
    count, keys = n_keys // pool, torch.arange(n_keys, device=device)[None]
    if mask.documents is None and mask.padding is None:
        last = keys[:, pool - 1 :: pool]
        return last, torch.ones_like(last, dtype=torch.bool), keys // pool
    ends = mask.place_keys(device) % pool == pool - 1
    if mask.padding is not None:
        ends = ends & mask.padding.to(device)
    order = (~ends).long().argsort(dim=-1, stable=True)[:, :count]  # the last tokens of pools first
    number = ends.long().cumsum(1) - ends.long()
    return order, ends.gather(1, order), number.clamp(max=count)


def take_pools(k: Tensor, last: Tensor, pool: int) -> Tensor:
    """Gather the pools [B, E, P, C] that end with tokens `last` [B|1, E] of k [B, S, C]."""
    members = last[..., None] + torch.arange(1 - pool, 1, device=k.device)  # B|1 E P
    members = members.clamp(min=0).expand(k.shape[0], -1, -1)
    taken = k.gather(1, members.flatten(1)[..., None].expand(-1, -1, k.shape[-1]))
    return taken.unflatten(1, members.shape[1:])


def score_keys(q: Tensor, weights: Tensor | None, k: Tensor) -> Tensor:
    """Compute Σ_h w_h·relu(q_h·k) in float32 [B, T, S], for q [B, T, H, C], weights [B, T, H] (None: 1) and k
    [B, S, C], as many heads at a time as AT_ONCE allows."""
    q, k = q.float(), k.float().transpose(1, 2)  # k B C S
    weights = None if weights is None else weights.float()[:, :, None]  # B T 1 H
    run = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    scores = None
    for start in range(0, q.shape[2], run):
        heads = slice(start, start + run)
        each = q[:, :, heads]
        seen = torch.relu(each.flatten(1, 2) @ k).unflatten(1, each.shape[1:3])  # B T H S
        own = seen.sum(2) if weights is None else (weights[..., heads] @ seen)[:, :, 0]
        scores = own if scores is None else scores + own
    assert scores is not None
    return scores


def take_best(scores: Tensor, count: int) -> Tensor:
    """Make a mask that is True for the `count` largest of scores [..., S]. Of equal scores the first are taken; ties
    are frequent, because relu gives 0."""
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.topk(count, -1)[0][..., -1:]
    above, equal = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))
