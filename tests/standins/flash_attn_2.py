# B batch, T queries, S keys, H heads, K kv heads, C head width, N tokens of all rows together
"""flash-attn 2 (Dao, 2023) as `import flash_attn` gives it, after `flash_attn_interface.py` and `csrc/flash_attn`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from standins import caches, recorded
from standins.arithmetic import How, rows
from standins.checks import (
    check,
    ends,
    heads,
    int32,
    number,
    scale_of,
    shaped,
    sides,
    slopes_of,
    split,
    types,
    unplayed,
    wants_grad,
    whole,
)

__version__ = "2.8.3.post2"
WIDEST = 256
PAGE = 256  # tokens, of which a page holds a multiple


@recorded
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """q [B, T, H, C], k and v [B, S, K, C]: [B, T, H, C]. Any width to 256: the real one pads it to a multiple of 8."""
    how = _how(q, dropout_p, softmax_scale, causal, window_size, softcap)
    types(q, k, v)
    batch, n_heads = q.shape[0], q.shape[2]
    _widths(q, k, v, (batch, k.shape[1]))
    heads(n_heads, k.shape[2])
    check(batch > 0, "batch size must be positive")
    y, sums = rows(list(q), list(k), list(v), slopes_of(alibi_slopes, q, batch, n_heads), how)
    y, sums = torch.stack(y), torch.stack(sums)
    return (y, sums, q.new_empty(0)) if return_attn_probs else y


@recorded
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """Rows of unequal length end to end: q [N, H, C], k and v [N', K, C], or pages of them that `block_table` names."""
    how = _how(q, dropout_p, softmax_scale, causal, window_size, softcap)
    types(q, k, v)
    queries = ends(cu_seqlens_q, "cu_seqlens_q", q, q.shape[0], max_seqlen_q)
    batch, n_heads = len(queries) - 1, q.shape[1]
    if block_table is None:
        _widths(q, k, v, (k.shape[0],))
        keys = ends(cu_seqlens_k, "cu_seqlens_k", q, k.shape[0], max_seqlen_k)
        check(len(keys) == len(queries), f"cu_seqlens_k must have shape ({batch + 1},), found ({len(keys)},)")
        taken = split(k, keys), split(v, keys)
    else:
        check(not wants_grad(q, k, v), "a paged cache has no backward")
        _paged(q, k, v, block_table, batch)
        int32(cu_seqlens_k, "cu_seqlens_k", q, batch + 1)
        used = cu_seqlens_k.diff()
        check(not cu_seqlens_k[0], f"cu_seqlens_k must begin with 0, found {cu_seqlens_k.tolist()}")
        check(
            int(used.max()) <= whole(max_seqlen_k, "max_seqlen_k"), "a row of cu_seqlens_k is longer than max_seqlen_k"
        )
        taken = caches.taken(q, (k, v), (None, None), block_table, batch, lengths=used, index=None, leftpad=None)
    heads(n_heads, k.shape[-2])
    y, sums = rows(split(q, queries), *taken, slopes_of(alibi_slopes, q, batch, n_heads), how)
    y = torch.cat(y)
    return (y, torch.cat(sums, dim=1), q.new_empty(0)) if return_attn_probs else y


@recorded
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """q [B, T, H, C] reads a cache [B', S, K, C] or pages [N, page, K, C], to which k and v [B, T', K, C] are first
    added in place. Forward only: the real one cuts the graph without a word."""
    unplayed(rotary_cos=(rotary_cos, None), rotary_sin=(rotary_sin, None))
    how = _how(q, 0.0, softmax_scale, causal, window_size, softcap)
    check(not wants_grad(q, k_cache, v_cache, k, v), "flash_attn_with_kvcache has no backward")
    for name, each in (("k_cache", k_cache), ("v_cache", v_cache)):
        check(each.stride(-1) == 1, f"{name} must have contiguous last dimension", AssertionError)
    types(q, k_cache, v_cache)
    batch, n_heads = q.shape[0], q.shape[2]
    if block_table is None:
        _widths(q, k_cache, v_cache, tuple(k_cache.shape[:2]))
    else:
        check(cache_batch_idx is None, "Paged KVcache does not support cache_batch_idx")
        check(cache_leftpad is None, "We don't support Paged KV and leftpad_k running at the same time yet")
        _paged(q, k_cache, v_cache, block_table, batch)
    heads(n_heads, k_cache.shape[2])
    if isinstance(cache_seqlens, int):
        check(
            k_cache.shape[0] == batch, "seqlens_k must have shape (batch_size): a number makes one a row of the cache"
        )
    given = {"lengths": cache_seqlens, "index": cache_batch_idx, "leftpad": cache_leftpad}
    taken = caches.taken(q, (k_cache, v_cache), (k, v), block_table, batch, **given)
    y, sums = rows(list(q), *taken, slopes_of(alibi_slopes, q, batch, n_heads), how)
    y = torch.stack(y)
    return (y, torch.stack(sums)) if return_softmax_lse else y


def _how(q: Tensor, dropout_p: float, scale: float | None, causal: bool, window: Any, softcap: float) -> How:
    check(not (number(softcap, "softcap") > 0 and dropout_p), "Softcapping does not support dropout for now")
    unplayed(dropout_p=(dropout_p, 0.0))
    return How(scale_of(scale, q), *sides(window, causal), softcap)


def _widths(q: Tensor, k: Tensor, v: Tensor, lead: tuple[int, ...]) -> None:
    width = q.shape[-1]
    check(width <= WIDEST, f"FlashAttention forward only supports head dimension at most {WIDEST}, found {width}")
    shaped(k, "k", *lead, k.shape[-2], width)
    shaped(v, "v", *lead, k.shape[-2], width)


def _paged(q: Tensor, k: Tensor, v: Tensor, table: Tensor, batch: int) -> None:
    int32(table, "block_table", q, batch, table.shape[1])
    check(k.shape[1] % PAGE == 0, f"Paged KV cache block size must be divisible by {PAGE}, found {k.shape[1]}")
    _widths(q, k, v, tuple(k.shape[:2]))
