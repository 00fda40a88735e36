# B batch, T queries, S keys, H heads, K kv heads, G = H/K query heads to a kv head, C head width
"""torch's scaled_dot_product_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.kernels.base import AttentionQuery, Call, Kernel, Machine, Scores
from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias


class SDPA(Kernel):
    """torch's own fused attention, on any device."""

    name = "sdpa"
    about = "torch's scaled_dot_product_attention: fused; no softcap, no sinks"

    def refuses(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if ask.softcap is not None:
            return "scaled_dot_product_attention has no softcap"
        if ask.sinks:
            return "scaled_dot_product_attention has no attention sinks"
        if ask.dropout and machine.device == "cpu":
            return "torch has no fused kernel with dropout on a CPU"
        return None

    def call(self, ask: AttentionQuery) -> Call:
        if not plain(ask):
            return Call("scaled_dot_product_attention", {"attn_mask": "[B, H, T, S]"})
        return Call("scaled_dot_product_attention", {"is_causal": ask.causal and not ask.short_q})

    def prepare(
        self, mask: Mask, ask: AttentionQuery, device: torch.device, dtype: torch.dtype, bias: Bias | None
    ) -> None:
        _additive(mask, device, dtype, bias)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        mask, scale = how.mask, how.scale
        added = _additive(mask, q.device, q.dtype, how.bias)
        if q.shape[1] == 1 and q.shape[2] != k.shape[2] and how.dropout is None:
            return _one_query(q, k, v, added, scale)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # B H T C, B K S C
        # is_causal is aligned at the upper left: correct only where there are as many queries as keys.
        causal = added is None and not mask.sees_all
        shared = q.shape[1] != k.shape[1]
        if shared and _must_repeat(q, v, added):
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
            shared = False
        given = {} if how.dropout is None else {"dropout_p": how.dropout.rate}
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=causal, scale=scale, enable_gqa=shared, **given
        )
        return y.transpose(1, 2)  # B T H Cv


def plain(ask: AttentionQuery) -> bool:
    """Whether torch needs no mask tensor: all keys are visible, or T = S and the mask is causal."""
    hidden = ask.window or ask.padding or ask.documents or ask.pairs or ask.lengths or ask.chosen
    return not hidden and ask.bias == "none" and not (ask.causal and ask.short_q)


def _additive(mask: Mask, device: torch.device, dtype: torch.dtype, bias: Bias | None) -> Tensor | None:
    """Return mask and bias as torch's `attn_mask` [B|1, H|1, T, S]; None if `is_causal` suffices."""
    if bias is None:
        return None if mask.sees_all or mask.plain_causal else mask.additive(device, dtype)
    # In bfloat16 a bias of -1000 is rounded to a multiple of 4. The CPU's kernel adds a float32 bias unrounded, and is
    # 5% slower for it; CUDA's kernels demand the dtype of q.
    wide = torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype
    return mask.additive(device, wide, bias)


def _must_repeat(q: Tensor, v: Tensor, added: Tensor | None) -> bool:
    """Whether K and V are copied for the heads that share them.

    On a CPU they are not, because enable_gqa is faster: 49 ms against 57 with copies in float32, 28 against 33 in
    bfloat16 (torch 2.13, November 2026; B 4, T 512, H 12, K 4, C 64, causal, 2 threads, forward and backward). On CUDA
    only the flash kernel shares keys (torch's documentation), and it supports no mask, no float32 and no V of another
    width: without copies such calls would run unfused.
    """
    return q.is_cuda and (added is not None or q.dtype == torch.float32 or v.shape[3] != q.shape[3])


def _one_query(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float) -> Tensor:
    """Attend for one query: heads that share keys become queries of one head, so that K and V are read once and not
    copied.

    With 2 CPU threads, H 12, K 4, C 64, S 1024: 42 µs against 79 with enable_gqa in float32, 56 against 67 in bfloat16.
    """
    batch, _, n_heads, width = q.shape
    n_kv_heads = k.shape[2]
    group = n_heads // n_kv_heads
    if added is not None and added.shape[1] == n_heads:
        added = added.reshape(added.shape[0], n_kv_heads, group, added.shape[3])  # B|1 K G S
    q = q.reshape(batch, n_kv_heads, group, width)
    y = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=added, scale=scale)
    return y.reshape(batch, 1, n_heads, v.shape[3])
