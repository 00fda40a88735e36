"""No attention, for layers that mix no tokens."""

from __future__ import annotations

from typing import ClassVar

from zoo.model.attention.base import Attention, Passes


class NoAttention(Attention, kind="none"):
    """Attention of a layer without attention: nothing is cached, seen or computed. The layer's block neither lists nor
    calls this component."""

    passes: ClassVar[Passes] = Passes(split=True)  # type: ignore[misc]

    def shard(self, ranks: int) -> NoAttention:
        return self
