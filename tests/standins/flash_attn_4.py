# B batch, T queries, S keys, H heads, K kv heads, C head width, N tokens of all rows together
"""flash-attn 4 (Zadouri et al., 2026) as `import flash_attn.cute` gives it, after `interface.py` and the kernels' own
asserts. It has no function for a cache, no ALiBi and no dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from standins import caches, recorded
from standins.arithmetic import attention
from standins.checks import HALVES, ends, int32, scale_of, shaped, split, unplayed, wants_grad, whole
from standins.checks import check as checked

ARCH = 90  # compute capability times ten, of the device that the stand-in plays on
TRAINED = ((192, 128), (128, 64), (64, 128))
"""Widths of keys and values, unlike, whose backward compiles for Hopper and Blackwell. That of others may fail: of
(64, 32) it does on both, of (48, 32) on Blackwell (tests/oracle/compile_flash4.py)."""
SINKS = (torch.float16, torch.bfloat16, torch.float32)


def check(fine: bool, message: str) -> None:
    """It asserts."""
    checked(fine, message, AssertionError)


@recorded
def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    gather_kv_indices: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: Any = None,
    score_mod_bwd: Any = None,
    mask_mod: Any = None,
    aux_tensors: list | None = None,
    aux_scalars: tuple | None = None,
    block_sparse_tensors: Any = None,
    block_sparse_tensors_bwd: Any = None,
    return_lse: bool = False,
    gather_bwd_recompute_p: bool = False,
    gather_bwd_token_chunk: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv]: [B, T, H, Cv], and the sums' logarithms [B, H, T] or None."""
    unplayed(qv=(qv, None), gather_kv_indices=(gather_kv_indices, None), score_mod=(score_mod, None))
    unplayed(mask_mod=(mask_mod, None), block_sparse_tensors=(block_sparse_tensors, None))
    _fits(q, k, v, learnable_sink, softcap, num_splits)
    for name, each in (("k", k), ("v", v)):
        shaped(each, name, q.shape[0], k.shape[1], *each.shape[2:])
    how = _how(q, softmax_scale, causal, window_size, softcap, learnable_sink)
    pairs = [attention(*row, **how) for row in zip(q, k, v, strict=True)]
    sums = torch.stack([each for _, each in pairs])
    return torch.stack([y for y, _ in pairs]), sums if return_lse or wants_grad(q, k, v, learnable_sink) else None


@recorded
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    min_seqlen_k: int | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    gather_kv_indices: Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: Any = None,
    score_mod_bwd: Any = None,
    mask_mod: Any = None,
    block_sparse_tensors: Any = None,
    aux_tensors: list | None = None,
    aux_scalars: tuple | None = None,
    return_lse: bool = False,
    scheduler_metadata: Any = None,
    seqlen_k_per_split: int | None = None,
    disable_scheduler_metadata: bool = False,
    gather_bwd_recompute_p: bool = False,
    gather_bwd_token_chunk: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Queries and keys each whole [B, T, H, C] or end to end [N, H, C]; keys also in pages that `page_table` names. Of
    row b's keys the first `seqused_k[b]` count."""
    unplayed(qv=(qv, None), gather_kv_indices=(gather_kv_indices, None), score_mod=(score_mod, None))
    unplayed(mask_mod=(mask_mod, None), block_sparse_tensors=(block_sparse_tensors, None), seqused_q=(seqused_q, None))
    unplayed(scheduler_metadata=(scheduler_metadata, None), seqlen_k_per_split=(seqlen_k_per_split, None))
    _fits(q, k, v, learnable_sink, softcap, num_splits)
    wide = ARCH // 10 in (10, 11) and (q.shape[-1], v.shape[-1]) == (256, 256)
    check(not wide or seqused_k is None, "SM100 forward with head_dim=256 does not support seqused_q/seqused_k")
    if cu_seqlens_q is None:
        queries = list(q)
    else:
        _int32(cu_seqlens_q, "cu_seqlens_q")
        longest = q.shape[0] if max_seqlen_q is None else max_seqlen_q
        queries = split(q, ends(cu_seqlens_q, "cu_seqlens_q", q, q.shape[0], longest))
    keys = _keys(q, k, v, len(queries), cu_seqlens_k, max_seqlen_k, seqused_k, page_table)
    how = _how(q, softmax_scale, causal, window_size, softcap, learnable_sink)
    pairs = [attention(*row, **how) for row in zip(queries, *keys, strict=True)]
    y, sums = [y for y, _ in pairs], [each for _, each in pairs]
    y, sums = (torch.stack(y), torch.stack(sums)) if cu_seqlens_q is None else (torch.cat(y), torch.cat(sums, dim=1))
    return y, sums if return_lse or wants_grad(q, k, v, learnable_sink) else None


def _fits(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, softcap: float, num_splits: int) -> None:
    """Types, shapes and what the device's kernels leave out."""
    check(v.dtype in HALVES, f"inputs must be float16, bfloat16, fp8 e4m3fn, or fp8 e5m2, found {v.dtype}")
    same = q.dtype == k.dtype == v.dtype
    check(same, f"q, k, v, and qv must have the same dtype, found {q.dtype}, {k.dtype} and {v.dtype}")
    check(q.device == k.device == v.device, "inputs must be on one device")
    n_heads, n_kv_heads = q.shape[-2], k.shape[-2]
    check(n_heads % n_kv_heads == 0, f"num_head must be divisible by num_head_kv, found {n_heads} and {n_kv_heads}")
    shaped(k, "k", *k.shape[:-1], q.shape[-1])
    shaped(v, "v", *k.shape[:-1], v.shape[-1])
    _widths(q.shape[-1], v.shape[-1])
    check(num_splits <= 1 or ARCH // 10 in (10, 11), "SplitKV not supported on SM 9.0")
    if sink is not None:
        check(
            tuple(sink.shape) == (n_heads,), f"learnable_sink must have shape ({n_heads},), found {tuple(sink.shape)}"
        )
        check(sink.dtype in SINKS, f"learnable_sink must be float16, bfloat16, or float32, found {sink.dtype}")
    if ARCH // 10 in (10, 11) and (q.shape[-1], v.shape[-1]) == (256, 256):
        check(not softcap, "SM100 forward with head_dim=256 does not support softcap")
        check(sink is None, "SM100 forward with head_dim=256 does not support learnable_sink")
    if wants_grad(q, k, v, sink):
        _backward(q.shape[-1], v.shape[-1], n_heads > n_kv_heads)


def _widths(width: int, of_values: int) -> None:
    fine = width % 8 == 0 and of_values % 8 == 0
    within = min(width, of_values) >= 8 and max(width, of_values) <= (256 if ARCH // 10 == 9 else 128)
    special = ARCH // 10 in (10, 11) and (width, of_values) in ((192, 128), (256, 256), (64, 512), (512, 512))
    names = {9: "SM90", 10: "SM100/SM110", 11: "SM100/SM110"}
    check(ARCH // 10 in names, f"Unsupported compute capability {ARCH / 10}")
    message = f"(head_dim, head_dim_v)=({width}, {of_values}) is not supported on {names[ARCH // 10]}"
    check(fine and (within or special), message)
    tight = ARCH // 10 == 9 and of_values > 192 and width < 128
    check(not tight, f"{message}: its registers do not do for values so much wider than keys")


def _backward(width: int, of_values: int, grouped: bool) -> None:
    """What the kernels of the backward pass leave out."""
    known = width == of_values or (width, of_values) in TRAINED
    check(known, f"the backward of (head_dim, head_dim_v)=({width}, {of_values}) is not known to compile")
    if ARCH // 10 == 9:
        check(not grouped or width == of_values, "GQA backward requires head_dim == head_dim_v")


def _how(q: Tensor, scale: float | None, causal: bool, window: Any, softcap: float, sink: Tensor | None) -> dict:
    """None is no limit of a window; so are two negative numbers, but one alone is taken at its word."""
    left, right = (side if side is None else whole(side, "a side of window_size") for side in window)
    if left is not None and right is not None and left < 0 and right < 0:
        left = right = None
    return {
        "scale": scale_of(scale, q),
        "left": left,
        "right": 0 if causal else right,
        "softcap": softcap,
        "sinks": sink,
    }


def _int32(tensor: Tensor, name: str) -> None:
    words = "cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k must be int32"
    check(tensor.dtype == torch.int32, f"{words}, found {name} of {tensor.dtype}")


def _keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: int,
    cu_seqlens_k: Tensor | None,
    max_seqlen_k: int | None,
    seqused_k: Tensor | None,
    page_table: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The keys and values of each row."""
    used = None
    if seqused_k is not None:
        _int32(seqused_k, "seqused_k")
        int32(seqused_k, "seqused_k", q, batch)
        used = seqused_k.tolist()
    if page_table is not None:
        check(cu_seqlens_k is None, "page_table is not supported with cu_seqlens_k")
        check(page_table.dtype == torch.int32, f"page_table must be int32, found {page_table.dtype}")
        shaped(page_table, "page_table", batch, page_table.shape[1])
        irregular = k.shape[-1] % 16 or v.shape[-1] % 16  # but for pages of just the kernel's own tile
        check(not irregular, f"Paged KV does not support irregular head dim, found {k.shape[-1]} and {v.shape[-1]}")
        check(not wants_grad(q, k, v), "a paged cache has no backward")
        return caches.taken(q, (k, v), (None, None), page_table, batch, lengths=seqused_k, index=None, leftpad=None)
    if cu_seqlens_k is None:
        shaped(k, "k", batch, *k.shape[1:])
        rows = list(k), list(v)
    else:
        _int32(cu_seqlens_k, "cu_seqlens_k")
        shaped(cu_seqlens_k, "cu_seqlens_k", batch + 1)
        longest = k.shape[0] if max_seqlen_k is None else max_seqlen_k
        numbers = ends(cu_seqlens_k, "cu_seqlens_k", q, k.shape[0], longest)
        rows = split(k, numbers), split(v, numbers)
    if used is None:
        return rows
    check(all(n <= len(row) for n, row in zip(used, rows[0], strict=True)), "seqused_k is more than a row has")
    return [row[:n] for row, n in zip(rows[0], used, strict=True)], [
        row[:n] for row, n in zip(rows[1], used, strict=True)
    ]
