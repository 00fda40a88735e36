"""Attention and recurrent mixers: the base, and one file for each family."""

from zoo.model.attention import (  # noqa: F401  (registers their kinds)
    block_sparse,
    bottleneck,
    cca,
    compressed,
    delta,
    differential,
    disentangled,
    dynamic_gqa,
    fourier,
    gqa,
    in_turn,
    indexer,
    kda,
    linear,
    longformer,
    mamba,
    mean_pooled,
    merged,
    mla,
    mlstm,
    nothing,
    nystrom,
    retention,
    rg_lru,
    rwkv,
    rwkv7,
    short_conv,
    side_by_side,
    span_conv,
    transformer_xl,
    transient_global,
)
from zoo.model.attention.base import Attention

__all__ = ["Attention"]
