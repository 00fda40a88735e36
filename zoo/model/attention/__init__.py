"""How a token reads the others: the base, and one file for each family of attention."""

from zoo.model.attention import delta, disentangled, gqa, longformer, mamba, mla  # noqa: F401  (registers their kinds)
from zoo.model.attention.base import Attention

__all__ = ["Attention"]
