"""No attention, for layers that mix no tokens."""

from __future__ import annotations

from typing import ClassVar

from zoo.model.attention.base import Attention, Passes
from zoo.spec import hold_whole


class NoAttention(Attention, kind="none"):
    """Value of the field `attention` in a layer without attention. It caches and computes nothing, and the layer's
    block neither lists nor calls it."""

    passes: ClassVar[Passes] = Passes(split=True)  # type: ignore[misc]
    shard = hold_whole
