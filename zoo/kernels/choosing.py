# B batch, T queries, S keys, H heads, C head width
"""Choose for each query the keys that it attends to, by scores that cost less than attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.mask import Mask
    from zoo.kernels.rows import PoolRows

AT_ONCE = 1 << 24
"""Scores of single heads that are held at once."""


@dataclass
class Choice:
    """The keys that a layer chose for each query, which layers after it may take: `keys` [B, T, S], True for a key
    that is chosen, or [B, H, T, S] where heads choose apart; or one such of one row for each of rows that are not
    alike."""

    keys: Tensor | list[Tensor] | None = None

    def narrow(self, mask: Mask, rows: PoolRows | None) -> tuple[Mask, PoolRows | None]:
        """The masks of a pass for queries that see no more than the keys chosen."""
        if rows is None:
            return mask.narrow(self.keys), None  # type: ignore[arg-type]
        assert isinstance(self.keys, list)
        own = [replace(row, mask=row.mask.narrow(keys)) for row, keys in zip(rows.rows, self.keys, strict=True)]
        return mask, replace(rows, rows=own)


def choose_keys(q: Tensor, weights: Tensor, k: Tensor, mask: Mask, top_k: int) -> Tensor:
    """Choose the `top_k` best of the keys that a query sees, by Σ_h w_h·relu(q_h·k): q [B, T, H, C], weights [B, T, H]
    and k [B, S, C] → True for a key that is chosen [B, T, S]. All are chosen of a query that sees fewer."""
    with torch.no_grad():
        seen = mask.dense(q.device)[:, 0]  # B|1 T S
        return take_best(score_keys(q, weights, k).masked_fill(~seen, -math.inf), top_k)


def choose_blocks(q: Tensor, k: Tensor, mask: Mask, *, size: int, count: int, local: int, n_heads: int) -> Tensor:
    """Choose the `count` best blocks of `size` keys by the largest q·k in each: q [B, T, G, C] and k [B, S, C] → True
    for a key of a chosen block [B, H, T, S], for G groups of the `n_heads` heads H. The newest `local` blocks that a
    query sees are always among them. Blocks are counted from where a query's text begins.

    With blocks of 4 and a text of 10 keys, a query that sees 7 of them has blocks 0 and 1; 1 is its newest.
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


def score_keys(q: Tensor, weights: Tensor, k: Tensor) -> Tensor:
    """Compute Σ_h w_h·relu(q_h·k) in float32 [B, T, S], for q [B, T, H, C], weights [B, T, H] and k [B, S, C]. As many
    heads are taken at once as AT_ONCE allows."""
    q, weights, k = q.float(), weights.float()[:, :, None], k.float().transpose(1, 2)  # k B C S
    run = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
    scores = None
    for start in range(0, q.shape[2], run):
        heads = slice(start, start + run)
        each = q[:, :, heads]
        seen = torch.relu(each.flatten(1, 2) @ k).unflatten(1, each.shape[1:3])  # B T H S
        own = (weights[..., heads] @ seen)[:, :, 0]
        scores = own if scores is None else scores + own
    assert scores is not None
    return scores


def take_best(scores: Tensor, count: int) -> Tensor:
    """Take the `count` largest of scores [..., S]; of equal ones the first, whatever there is behind them. Scores of 0
    are equal often: relu gives them."""
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.topk(count, -1)[0][..., -1:]
    above, equal = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))
