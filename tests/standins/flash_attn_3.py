# B batch, T queries, S keys, H heads, K kv heads, C head width, N tokens of all rows together
"""flash-attn 3 (Shah et al., 2024) as `import flash_attn_interface` gives it, after the hopper folder's interface and
`flash_api.cpp`, on a Hopper. It has no ALiBi and no dropout."""

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
    split,
    types,
    unplayed,
    wants_grad,
)

WIDEST = 256
TUPLES = False
"""Whether the two functions with a gradient give the sums unasked, as early versions did."""


@recorded
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv]: [B, T, H, Cv]."""
    _unplayed(qv, q_descale, k_descale, v_descale, attention_chunk)
    how = _how(q, softmax_scale, causal, window_size, softcap)
    types(q, k, v)
    _widths(q, k, v, (q.shape[0], k.shape[1]))
    y, sums = rows(list(q), list(k), list(v), [None] * len(q), how)
    y = torch.stack(y)
    return (y, torch.stack(sums)) if return_attn_probs or TUPLES else y


@recorded
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Rows of unequal length end to end: q [N, H, C], k [N', K, C], v [N', K, Cv]; of row b's keys the first
    `seqused_k[b]` count."""
    _unplayed(qv, q_descale, k_descale, v_descale, attention_chunk)
    unplayed(seqused_q=(seqused_q, None))
    how = _how(q, softmax_scale, causal, window_size, softcap)
    types(q, k, v)
    _widths(q, k, v, (k.shape[0],))
    queries = ends(cu_seqlens_q.contiguous(), "cu_seqlens_q", q, q.shape[0], max_seqlen_q)
    keys = ends(cu_seqlens_k.contiguous(), "cu_seqlens_k", q, k.shape[0], max_seqlen_k)
    check(len(keys) == len(queries), "batch_size must be equal to batch_size_k")
    of_keys, of_values = split(k, keys), split(v, keys)
    if seqused_k is not None:
        int32(seqused_k.contiguous(), "seqused_k", q, len(queries) - 1)
        used = seqused_k.tolist()
        of_keys, of_values = ([row[:n] for row, n in zip(rows, used, strict=True)] for rows in (of_keys, of_values))
    y, sums = rows(split(q, queries), of_keys, of_values, [None] * len(of_keys), how)
    y = torch.cat(y)
    return (y, torch.cat(sums, dim=1)) if return_attn_probs or TUPLES else y


@recorded
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Any = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """q [B, T, H, C], or [N, H, C] with `cu_seqlens_q`, reads a cache [B', S, K, C] and [B', S, K, Cv], or pages of any
    size that `page_table` names, to which k and v [B, T', K, C] are first added in place. Forward only."""
    _unplayed(qv, q_descale, k_descale, v_descale, attention_chunk)
    unplayed(rotary_cos=(rotary_cos, None), rotary_sin=(rotary_sin, None), rotary_seqlens=(rotary_seqlens, None))
    unplayed(cu_seqlens_k_new=(cu_seqlens_k_new, None), scheduler_metadata=(scheduler_metadata, None))
    how = _how(q, softmax_scale, causal, window_size, softcap)
    check(not wants_grad(q, k_cache, v_cache, k, v), "flash_attn_with_kvcache has no backward")
    for name, each in (("k_cache", k_cache), ("v_cache", v_cache)):
        check(each.stride(-1) == 1, f"{name} must have contiguous last dimension", AssertionError)
    types(q, k_cache, v_cache)
    _widths(q, k_cache, v_cache, tuple(k_cache.shape[:2]))
    if cu_seqlens_q is None:
        queries = list(q)
    else:
        check(max_seqlen_q is not None, "max_seqlen_q must be provided if cu_seqlens_q is provided")
        queries = split(q, ends(cu_seqlens_q, "cu_seqlens_q", q, q.shape[0], max_seqlen_q))
    batch = len(queries)
    if page_table is not None:
        int32(page_table, "page_table", q, page_table.shape[0], page_table.shape[1])
    n_cached = k_cache.shape[0] if page_table is None else page_table.shape[0]
    check(cache_batch_idx is not None or batch == n_cached, "batch_size must be equal to batch_size_k")
    given = {"lengths": cache_seqlens, "index": cache_batch_idx, "leftpad": cache_leftpad}
    taken = caches.taken(q, (k_cache, v_cache), (k, v), page_table, batch, **given)
    y, sums = rows(queries, *taken, [None] * batch, how)
    y, sums = (torch.stack(y), torch.stack(sums)) if cu_seqlens_q is None else (torch.cat(y), torch.cat(sums, dim=1))
    return (y, sums) if return_softmax_lse else y


def _unplayed(qv: Any, q_descale: Any, k_descale: Any, v_descale: Any, attention_chunk: int) -> None:
    scales = {"q_descale": (q_descale, None), "k_descale": (k_descale, None), "v_descale": (v_descale, None)}
    unplayed(qv=(qv, None), attention_chunk=(attention_chunk, 0), **scales)


def _how(q: Tensor, scale: float | None, causal: bool, window: Any, softcap: float) -> How:
    return How(scale_of(scale, q), *sides(window, causal), number(softcap, "softcap"))


def _widths(q: Tensor, k: Tensor, v: Tensor, lead: tuple[int, ...]) -> None:
    """Heads: as wide as keys, or one of two shapes that a Hopper knows besides."""
    width, of_values = q.shape[-1], v.shape[-1]
    check(width <= WIDEST, f"FlashAttention forward only supports head dimension at most {WIDEST}, found {width}")
    heads(q.shape[-2], k.shape[-2])
    expanded, narrow = 128 < width <= 192 and 96 < of_values <= 128, width <= 64 and of_values <= 512
    words = "we only support Q/K headdim in (128, 192] and V headdim in (96, 128], or (Q/K <= 64 and V <= 512)"
    check(of_values == width or expanded or narrow, f"{words}, found {width} and {of_values}")
    for name, each in (("head_size", width), ("head_size_v", of_values)):
        check(each % 8 == 0, f"{name} should be a multiple of 8, found {each}")
    if wants_grad(q, k, v):
        check(of_values <= WIDEST, f"FlashAttention backward only supports head dimension at most {WIDEST}")
    shaped(k, "k", *lead, k.shape[-2], width)
    shaped(v, "v", *lead, k.shape[-2], of_values)
