"""Calls of the stand-ins that the real ones would refuse or go astray with, and words of the refusal."""

import torch

from standins import flash_attn_2, flash_attn_3, flash_attn_4, torch_flash

HALF = torch.bfloat16


def tensors(batch, queries, keys, heads=4, kv_heads=2, width=16, v_width=None, dtype=HALF, grad=False):
    """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv]."""
    q = torch.randn(batch, queries, heads, width)
    k, v = torch.randn(batch, keys, kv_heads, width), torch.randn(batch, keys, kv_heads, v_width or width)
    return tuple(x.to(dtype).requires_grad_(grad) for x in (q, k, v))


def dense(version=flash_attn_2, change=None, **given):
    """A call that is fine but for what `given` and `change` say."""
    q, k, v = tensors(2, 3, 5)
    q, k, v = (q, k, v) if change is None else change(q, k, v)
    return version.flash_attn_func(q, k, v, **given)


def varlen(version=flash_attn_2, change=None, **given):
    q, k, v = (x[0] for x in tensors(1, 4, 6))
    q, k, v = (q, k, v) if change is None else change(q, k, v)
    ends = {"cu_seqlens_q": [0, 1, 4], "cu_seqlens_k": [0, 2, 6]}
    ends = {name: torch.tensor(numbers, dtype=torch.int32) for name, numbers in ends.items()}
    return version.flash_attn_varlen_func(q, k, v, **{**ends, "max_seqlen_q": 3, "max_seqlen_k": 4, **given})


def cached(version=flash_attn_2, change=None, page=None, **given):
    q, k, v = tensors(2, 1, page or 8)
    q, k, v = (q, k, v) if change is None else change(q, k, v)
    with torch.no_grad():
        return version.flash_attn_with_kvcache(q, k, v, **given)


def aten(change=None, ends=(None, None), **given):
    q, k, v = tensors(2, 3, 5)
    q, k, v = (q, k, v) if change is None else change(q, k, v)
    return torch_flash._flash_attention_forward(q, k, v, *ends, 3, 5, 0.0, False, False, **given)


def ints(*numbers, dtype=torch.int32):
    return torch.tensor(numbers, dtype=dtype)


def wide(width, v_width=None, heads=4):
    return lambda *_: tensors(2, 3, 5, heads=heads, width=width, v_width=v_width)


def grads(*qkv):
    return tuple(x.requires_grad_() for x in qkv)


def crossed(q, k, v):
    """The same keys, their last axis not the innermost."""
    return q, k.transpose(2, 3).contiguous().transpose(2, 3), v


VERSIONS = {"2": flash_attn_2, "3": flash_attn_3, "4": flash_attn_4}
SHARED = [
    (dense, {"change": lambda q, k, v: (q.float(), k.float(), v.float())}, "float16|fp16"),
    (dense, {"change": lambda q, k, v: (q, k.half(), v)}, "must have the same dtype"),
    (dense, {"change": lambda q, k, v: (q, k, v.half())}, "must have the same dtype"),
    (dense, {"change": lambda q, k, v: (q[:, :, :3], k, v)}, "divide number of heads|must be divisible"),
    (dense, {"change": lambda q, k, v: (q, k[:1], v[:1])}, "must have shape"),
    (dense, {"change": lambda q, k, v: (q, k, v[:, 1:])}, "must have shape"),
    (dense, {"change": wide(264)}, "at most 256|not supported on SM90"),
    (dense, {"window_size": (1.0, 0)}, "must be an int"),
    (varlen, {"cu_seqlens_q": ints(0, 1, 4, dtype=torch.int64)}, "int32"),
    (varlen, {"cu_seqlens_k": ints(0, 2, 6, dtype=torch.int64)}, "int32"),
    (varlen, {"cu_seqlens_q": ints(0, 4), "max_seqlen_q": 4}, "shape|batch_size"),
    (varlen, {"cu_seqlens_q": ints(1, 2, 4)}, "must begin with 0"),
    (varlen, {"cu_seqlens_k": ints(0, 7, 6)}, "must not decrease"),
    (varlen, {"cu_seqlens_k": ints(0, 2, 5)}, "must end with the number of tokens 6"),
    (varlen, {"max_seqlen_k": 3}, "has 4 tokens, 3 were announced"),
    (varlen, {"max_seqlen_q": torch.tensor(3)}, "must be an int"),
]
KVCACHE = [
    (cached, {"change": crossed}, "k_cache must have contiguous last dimension"),
    (cached, {"cache_seqlens": ints(1, 2, dtype=torch.int64)}, "cache_seqlens must have dtype int32"),
    (cached, {"cache_seqlens": ints(1)}, "cache_seqlens must have shape"),
    (cached, {"cache_seqlens": ints(1, 9)}, "cache_seqlens must lie in 0…8"),
    (cached, {"cache_seqlens": ints(1, 0, 2, 0)[::2]}, "cache_seqlens must be contiguous"),
    (cached, {"k": torch.zeros(2, 1, 2, 16, dtype=HALF), "cache_seqlens": ints(1, 2)}, "value must also be passed in"),
    (cached, {"cache_batch_idx": ints(0, 2)}, "cache_batch_idx must lie in 0…1"),
]
NEW = {name: torch.zeros(2, 1, 2, 16, dtype=HALF) for name in ("k", "v")}
REFUSED = {
    "2": [
        *SHARED,
        *KVCACHE,
        (dense, {"dropout_p": 0.1, "softcap": 1.0}, "Softcapping does not support dropout"),
        (dense, {"dropout_p": 0.1}, "does not play dropout_p"),
        (dense, {"window_size": (None, 0)}, "must be an int"),
        (dense, {"softcap": None}, "softcap must be a number"),
        (dense, {"alibi_slopes": torch.ones(4, dtype=HALF)}, "ALiBi slopes must have dtype fp32"),
        (dense, {"alibi_slopes": torch.ones(3)}, "alibi_slopes must have shape"),
        (dense, {"change": wide(16, 8)}, "v must have shape"),
        (varlen, {"cu_seqlens_q": ints(0, 9, 1, 9, 4, 9)[::2]}, "cu_seqlens_q must be contiguous"),
        (cached, {**NEW, "cache_seqlens": ints(7, 8)}, "the cache holds 8 keys, 8 and 1 new ones do not fit"),
        (cached, NEW, "seqlens_k must also be passed in"),
        (cached, {"block_table": ints(0, 1)[:, None]}, "must be divisible by 256, found 8"),
        (
            cached,
            {"page": 256, "block_table": ints(0, 1, dtype=torch.int64)[:, None]},
            "block_table must have dtype int32",
        ),
        (cached, {"page": 256, "block_table": ints(0, 2)[:, None]}, "pages must lie in 0…1"),
        (cached, {"page": 256, "block_table": ints(0, 1)[:, None], "cache_batch_idx": ints(0, 1)}, "cache_batch_idx"),
        (cached, {"page": 256, "block_table": ints(0, 1)[:, None], "cache_leftpad": ints(0, 1)}, "leftpad_k"),
        (cached, {"rotary_cos": torch.ones(8, 8)}, "does not play rotary_cos"),
    ],
    "3": [
        *SHARED,
        *KVCACHE,
        (dense, {"window_size": (None, 0)}, "must be an int"),
        (dense, {"change": wide(20)}, "head_size should be a multiple of 8"),
        (dense, {"change": wide(128, 64)}, "only support Q/K headdim in"),
        (dense, {"change": wide(64, 520)}, "only support Q/K headdim in"),
        (dense, {"change": lambda *_: grads(*tensors(1, 1, 1, width=64, v_width=512))}, "backward only supports"),
        (dense, {"qv": torch.zeros(1)}, "does not play qv"),
        (dense, {"attention_chunk": 4}, "does not play attention_chunk"),
        (cached, {"page_table": ints(0, 1, dtype=torch.int64)[:, None]}, "page_table must have dtype int32"),
        (cached, {"page_table": ints(0, 1, 0)[:, None]}, "batch_size must be equal to batch_size_k"),
        (cached, {**NEW, "cache_seqlens": ints(7, 8)}, "the cache holds 8 keys, 8 and 1 new ones do not fit"),
    ],
    "4": [
        *SHARED,
        (dense, {"change": wide(20)}, "not supported on SM90"),
        (dense, {"num_splits": 2}, "SplitKV not supported on SM 9.0"),
        (dense, {"learnable_sink": torch.zeros(3)}, "learnable_sink must have shape"),
        (dense, {"learnable_sink": torch.zeros(4).double()}, "learnable_sink must be float16, bfloat16, or float32"),
        (dense, {"score_mod": max}, "does not play score_mod"),
        (dense, {"change": lambda *_: grads(*wide(128, 64)())}, "GQA backward requires head_dim == head_dim_v"),
        (dense, {"change": lambda *_: grads(*wide(64, 32)())}, "not known to compile"),
        (dense, {"change": wide(64, 256)}, "registers do not do"),
        (varlen, {"page_table": ints(0, 0)[:, None]}, "page_table is not supported with cu_seqlens_k"),
        (
            varlen,
            {"page_table": ints(0, 0, dtype=torch.int64)[:, None], "cu_seqlens_k": None},
            "page_table must be int32",
        ),
        (varlen, {"seqused_k": ints(3, 4)}, "seqused_k is more than a row has"),
        (varlen, {"seqused_k": ints(1, 4, dtype=torch.int64)}, "must be int32, found seqused_k"),
    ],
}
"""By version: the call, its arguments, and words of what it must raise."""
