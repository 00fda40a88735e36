# B rows, T queries, S keys, H heads, K kv heads, G = H/K query heads to a kv head, C head width
"""Compute attention over a part of the keys, with its log-sum-exp, and the part's gradients in attention over all keys.

The gradients of a part need the part's q, k and v, and the output y and log-sum-exp of all parts together. With scores
s, P = exp(s − lse) and dP = dy·vᵀ, ds = P·(dP − Σ dy·y) (Dao et al., 2022, FlashAttention, appendix B.4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels.eager import score
from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask

WIDEST = 256  # head width of flash-attn 2


class PartScores(NamedTuple):
    """How the scores of a part are computed and masked.

    `mask` gives the visible keys if they are the queries' own tokens, otherwise `seen` [B|1, 1, T, S]. If both are
    None, all keys are visible. `bias` is [B|1, H, T, S]; it gets a gradient only if it is `learned`.
    """

    scale: float
    softcap: float | None = None
    mask: Mask | None = None
    seen: Tensor | None = None
    bias: Tensor | None = None
    learned: bool = False

    @property
    def only_causal(self) -> bool:
        """Whether there is a plain causal mask and no bias."""
        return self.bias is None and self.mask is not None and self.mask.plain_causal

    def draw_seen(self, device: torch.device) -> Tensor | None:
        """Return which keys are visible [B|1, 1, T, S]; None if all are."""
        return self.seen if self.mask is None else self.mask.dense(device)


class PartGradients(NamedTuple):
    """The gradients of a part's q, k and v, and of a learned bias [B, H, T, S]."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None


class PartKernel:
    """Base of the kernels for attention over a part of the keys. q [B, T, H, C], k [B, S, K, C] and v [B, S, K, Cv]
    have one dtype."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, how: PartScores) -> tuple[Tensor, Tensor]:
        """Compute the output [B, T, H, Cv] and the log-sum-exp [B, H, T] in float32, −inf for a query without keys."""
        raise NotImplementedError

    def backward(
        self, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, how: PartScores
    ) -> PartGradients:
        """Compute the part's gradients from dy, the gradient of y. y and lse are the output and the log-sum-exp of all
        parts together."""
        raise NotImplementedError


class EagerPart(PartKernel):
    """Plain torch with the part's scores in memory, like `zoo.kernels.eager`: every feature, on any device."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, how: PartScores) -> tuple[Tensor, Tensor]:
        scores, _ = _score(q, k, how)
        lse = scores.logsumexp(-1)
        probs = _exponentiate(scores, lse).to(v.dtype).unflatten(1, (k.shape[2], -1))  # B K G T S
        return torch.einsum("bkgts,bskc->btkgc", probs, v).flatten(2, 3), lse

    def backward(
        self, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, how: PartScores
    ) -> PartGradients:
        scores, slope = _score(q, k, how)
        wide, heads = scores.dtype, (k.shape[2], -1)
        probs, dy = _exponentiate(scores, lse), dy.to(wide)
        spent = (dy * y).sum(-1).transpose(1, 2)[..., None]  # B H T 1
        dy = dy.unflatten(2, heads)  # B T K G Cv
        dv = torch.einsum("bkgts,btkgc->bskc", probs.unflatten(1, heads), dy)
        met = torch.einsum("btkgc,bskc->bkgts", dy, v.to(wide)).flatten(1, 2)  # B H T S
        found = probs * (met - spent)
        bias = found if how.learned else None
        found = (found * how.scale if slope is None else found * slope * how.scale).unflatten(1, heads)
        dq = torch.einsum("bkgts,bskc->btkgc", found, k.to(wide)).flatten(2, 3)
        dk = torch.einsum("bkgts,btkgc->bskc", found, q.to(wide).unflatten(2, heads))
        return PartGradients(dq, dk, dv, bias)


class FusedPart(PartKernel):
    """The CPU kernel behind torch's scaled_dot_product_attention, without softcap and learned bias."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, how: PartScores) -> tuple[Tensor, Tensor]:
        operator, (added, seen) = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _add(q, how)
        tensors = (each.transpose(1, 2) for each in (q, k, _widen(v, q)))
        y, lse = operator(*tensors, 0.0, how.only_causal, attn_mask=added, scale=how.scale)
        if seen is not None:  # the operator gives 0 for a query that sees no key
            lse = lse.masked_fill(~seen.any(-1), -math.inf)
        return y.transpose(1, 2)[..., : v.shape[3]], lse

    def backward(
        self, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, how: PartScores
    ) -> PartGradients:
        operator, (added, _) = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, _add(q, how)
        tensors = (each.transpose(1, 2) for each in (_widen(dy, q), q, k, _widen(v, q), _widen(y, q)))
        found = operator(*tensors, lse.contiguous(), 0.0, how.only_causal, attn_mask=added, scale=how.scale)
        dq, dk, dv = (each.transpose(1, 2) for each in found)
        return PartGradients(dq, dk, dv[..., : v.shape[3]])


class FlashPart(PartKernel):
    """The flash-attn 2 kernel in torch on CUDA, by the operators behind scaled_dot_product_attention: no mask, or a
    causal one with or without a window."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, how: PartScores) -> tuple[Tensor, Tensor]:
        lengths = (None, None, q.shape[1], k.shape[1])
        given = (0.0, how.mask is not None, False)
        found = torch.ops.aten._flash_attention_forward(q, k, _widen(v, q), *lengths, *given, **self._options(how))
        return found[0][..., : v.shape[3]], found[1]

    def backward(
        self, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, how: PartScores
    ) -> PartGradients:
        drawn = (torch.empty(shape, dtype=torch.uint64, device=q.device) for shape in (2, ()))  # of dropout: not read
        lengths, given = (None, None, q.shape[1], k.shape[1]), (0.0, how.mask is not None, *drawn)
        tensors = (_widen(dy, q), q, k, _widen(v, q), _widen(y, q), lse.contiguous())
        dq, dk, dv = torch.ops.aten._flash_attention_backward(*tensors, *lengths, *given, **self._options(how))
        return PartGradients(dq, dk, dv[..., : v.shape[3]])

    def _options(self, how: PartScores) -> dict[str, Any]:
        window = None if how.mask is None else how.mask.window
        sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
        return {"scale": how.scale, **sides}


EAGER, FUSED, FLASH = EagerPart(), FusedPart(), FlashPart()


def choose_part(q: Tensor, v: Tensor, how: PartScores, kernel: str) -> PartKernel:
    """Choose the kernel of a part: the device's fused kernel if it can compute the part, else eager. With `kernel`
    eager, always eager."""
    width = q.shape[3]
    if kernel == "eager" or how.softcap is not None or how.learned or v.shape[3] > width:
        return EAGER
    if q.device.type == "cpu":
        return FUSED
    short = q.dtype in (torch.float16, torch.bfloat16) and width <= WIDEST and width % 8 == 0
    return FLASH if q.is_cuda and short and how.seen is None and how.bias is None else EAGER


def _score(q: Tensor, k: Tensor, how: PartScores) -> tuple[Tensor, Tensor | None]:
    """Compute the masked scores [B, H, T, S] in float32. Also return the softcap's derivative at each, or None without
    a softcap."""
    scores, turned = score(q, k, how.scale, how.softcap)
    slope = None if turned is None else 1 - turned.square()
    if how.bias is not None:
        scores = scores + how.bias
    seen = how.draw_seen(q.device)
    return scores if seen is None else scores.masked_fill(~seen, -math.inf), slope


def _exponentiate(scores: Tensor, lse: Tensor) -> Tensor:
    """Compute exp(s − lse): 0 for hidden keys, also if a query sees none."""
    return (scores - lse.clamp(min=torch.finfo(lse.dtype).min)[..., None]).exp()


def _add(q: Tensor, how: PartScores) -> tuple[Tensor | None, Tensor | None]:
    """Return the tensor that torch adds to the scores, and the mask. Each is None if it is not needed."""
    seen = None if how.only_causal else how.draw_seen(q.device)
    wide = torch.promote_types(q.dtype, torch.float32)  # a bias is added unrounded
    bias = None if how.bias is None else how.bias.to(wide)
    if seen is None:
        return bias, None
    return torch.where(seen, torch.zeros((), dtype=wide, device=q.device) if bias is None else bias, -math.inf), seen


def _widen(x: Tensor, q: Tensor) -> Tensor:
    """Pad a tensor [B, S, K, Cv] with zeros to q's width, and cast it to q's dtype."""
    return F.pad(x, (0, q.shape[3] - x.shape[3])).to(q.dtype)
