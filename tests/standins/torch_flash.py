# B batch, T queries, S keys, H heads, K kv heads, C head width, N tokens of all rows together
"""torch's own flash-attn 2, aten::_flash_attention_forward, after `ATen/native/transformers/cuda`.

torch is built without ALiBi (FLASHATTENTION_DISABLE_ALIBI in caffe2/CMakeLists.txt), whatever the schema says."""

from __future__ import annotations

import torch
from torch import Tensor

from standins import recorded
from standins.arithmetic import How, rows
from standins.checks import check, ends, heads, scale_of, shaped, sides, split, types, unplayed, whole

NAME = "_flash_attention_forward"
WIDEST = 256


@recorded
def _flash_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """query [B, T, H, C], key and value [B, S, K, C], or with `cum_seq_q` and `cum_seq_k` rows end to end [N, H, C].

    Returns the output, the logarithms of the softmax' sums, and three that only dropout fills.
    """
    check(alibi_slopes is None, "This flash attention build does not support alibi.")
    unplayed(dropout_p=(dropout_p, 0.0), seqused_k=(seqused_k, None), block_table=(block_table, None))
    check(not return_debug_mask, "return_softmax is only supported when p_dropout > 0.0")
    types(query, key, value)
    for each in (query, key, value):
        check(each.stride(-1) == 1, "Input tensor must have contiguous last dimension")
    both = (cum_seq_q is None) == (cum_seq_k is None)
    check(both, "cumulative_sequence_length_q and cumulative_sequence_length_k must be both set or both not set")
    _widths(query, key, value)
    if cum_seq_q is None:
        shaped(key, "k", query.shape[0], *key.shape[1:])
        of_rows = list(query), list(key), list(value)
    else:
        queries = ends(cum_seq_q, "cu_seqlens_q", query, query.shape[0], max_q)
        keys = ends(cum_seq_k, "cu_seqlens_k", query, key.shape[0], max_k)
        check(len(keys) == len(queries), f"cu_seqlens_k must have shape ({len(queries)},), found ({len(keys)},)")
        of_rows = split(query, queries), split(key, keys), split(value, keys)
    window = [-1 if side is None else whole(side, "a side") for side in (window_size_left, window_size_right)]
    y, sums = rows(*of_rows, [None] * len(of_rows[0]), How(scale_of(scale, query), *sides(window, is_causal)))
    y, sums = (torch.stack(y), torch.stack(sums)) if cum_seq_q is None else (torch.cat(y), torch.cat(sums, dim=1))
    unused = torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64), query.new_empty(0)
    return y, sums, *unused


def _widths(query: Tensor, key: Tensor, value: Tensor) -> None:
    width = query.shape[-1]
    check(width % 8 == 0, f"head_size must be a multiple of 8, this is ensured by padding! found {width}")
    check(width <= WIDEST, f"FlashAttention forward only supports head dimension at most {WIDEST}, found {width}")
    heads(query.shape[-2], key.shape[-2])
    for name, each in (("k", key), ("v", value)):
        shaped(each, name, *key.shape[:-1], width)
