# T queries, S keys, H heads, K kv heads, C head width
"""Attention of one row as flash-attn's docstrings define it, in float64 and with nothing clever."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    left: int | None,
    right: int | None,
    softcap: float = 0.0,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [T, H, C] reads k [S, K, C] and v [S, K, Cv]: [T, H, Cv] in q's type, and the sums' logarithms [H, T].

    Query i stands at key i + S − T and sees the keys from `left` before to `right` behind that place, None being no
    limit. Scores are scaled, capped, then lowered by slope·distance; a query that sees nothing gives 0. `sinks` [H] are
    scores of a key without a value.
    """
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    place = torch.arange(q.shape[0], device=q.device)[:, None] + k.shape[0] - q.shape[0]
    key = torch.arange(k.shape[0], device=q.device)[None, :]
    seen = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device)
    seen = seen if left is None else seen & (key >= place - left)
    seen = seen if right is None else seen & (key <= place + right)
    of_head = torch.arange(heads, device=q.device) // group
    scores = torch.einsum("thc,shc->hts", q.double(), k.double()[:, of_head]) * scale
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * (place - key).abs()
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, q.shape[0], 1)], dim=2)
    if scores.shape[2] == 0:
        scores = scores.new_full((*scores.shape[:2], 1), -math.inf)
    top = scores.detach().amax(dim=2, keepdim=True).clamp_min(-1e30)  # a row of -inf must not subtract itself
    weights = torch.exp(scores - top)
    sums = weights.sum(dim=2, keepdim=True)
    weights = weights / torch.where(sums == 0, 1.0, sums)
    y = torch.einsum("hts,shc->thc", weights[..., : k.shape[0]], v.double()[:, of_head])
    return y.to(q.dtype), (top + sums.log())[..., 0].float()


class How(NamedTuple):
    """What is the same for all rows of a call."""

    scale: float
    left: int | None
    right: int | None
    softcap: float = 0.0


def rows(
    q: Iterable[Tensor], k: Iterable[Tensor], v: Iterable[Tensor], slopes: Iterable[Tensor | None], how: How
) -> tuple[list[Tensor], list[Tensor]]:
    """Each row's result and its sums, as versions 2 and 3 have them: infinite where a query sees nothing."""
    pairs = [attention(*row, **how._asdict(), slopes=slope) for *row, slope in zip(q, k, v, slopes, strict=True)]
    return [y for y, _ in pairs], [torch.where(sums == -math.inf, math.inf, sums) for _, sums in pairs]
