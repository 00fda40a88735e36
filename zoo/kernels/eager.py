# B batch, T queries, S keys, H heads, K kv heads, G = H/K query heads to a kv head, C head width
"""Attention in plain torch: the reference that every other kernel is tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.kernels.base import AttentionQuery, Call, Kernel, Machine, Scores
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias


class Eager(Kernel):
    """Compute softmax(mask(softcap(scale·QKᵀ) + bias))·V with all scores in memory.

    The two products are in the inputs' dtype, everything between them in float32 (or float64). torch's FlopCounterMode
    counts exactly these products: 2·T·S·H·(C + Cv) FLOPs per row.
    """

    name = "eager"
    about = "plain torch, the reference: every feature, any device and dtype; holds all scores in memory"

    fused = False

    def refuses(self, ask: AttentionQuery, machine: Machine) -> str | None:
        return None

    def call(self, ask: AttentionQuery) -> Call:
        return Call("softmax(QKᵀ)V")

    def prepare(
        self, mask: Mask, ask: AttentionQuery, device: torch.device, dtype: torch.dtype, bias: Bias | None
    ) -> None:
        if not mask.sees_all:
            mask.dense(device)
        if bias is not None:
            bias.dense()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        probs = self.weigh(q, k, how).to(v.dtype).unflatten(1, (k.shape[2], q.shape[2] // k.shape[2]))  # B K G T S
        if how.dropout is not None:
            probs = how.dropout.apply(probs)
        return torch.einsum("bkgts,bskc->btkgc", probs, v).flatten(2, 3)  # B T H Cv

    def weigh(self, q: Tensor, k: Tensor, how: Scores) -> Tensor:
        """Compute the attention probabilities [B, H, T, S] before dropout."""
        scores = score(q, k, how.scale, how.softcap)[0]
        if how.bias is not None:
            scores = scores + how.bias.dense()
        seen = None if how.mask.sees_all else how.mask.dense(q.device)
        return _softmax(scores, seen, how.sinks)


def score(q: Tensor, k: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Compute the scores [B, H, T, S] in float32, softcapped if `softcap` is given. Also return tanh(score / softcap),
    or None."""
    n_kv_heads = k.shape[2]
    queries = q.unflatten(2, (n_kv_heads, q.shape[2] // n_kv_heads))  # B T K G C
    scores = torch.einsum("btkgc,bskc->bkgts", queries, k).flatten(1, 2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if softcap is None:
        return scores, None
    turned = torch.tanh(scores / softcap)
    return softcap * turned, turned


def _softmax(scores: Tensor, seen: Tensor | None, sinks: Tensor | None) -> Tensor:
    """Compute the softmax over visible keys [B, H, T, S]. `sinks` [H] or [B, T, H] add a term to the denominator."""
    if seen is not None:
        # The lowest finite score, not -inf: a query that sees no key gives no NaN, forward or backward.
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if sinks is None:
        probs = scores.softmax(-1)
    else:
        each = sinks[None, None] if sinks.ndim == 1 else sinks
        column = each.to(scores.dtype).mT[..., None].expand(*scores.shape[:3], 1)  # B H T 1
        probs = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
    return probs if seen is None else probs.masked_fill(~seen, 0)
