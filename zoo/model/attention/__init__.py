"""Attention and recurrent mixers: the base, and one file for each family."""

from zoo.model.attention import delta, disentangled, gqa, longformer, mamba, mla  # noqa: F401  (registers their kinds)
from zoo.model.attention.base import Attention

__all__ = ["Attention"]
