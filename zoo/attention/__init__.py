"""Attention: one file for each family of it, and this base."""

from __future__ import annotations

from typing import Any

from zoo.kernels.base import Ask
from zoo.position import Position
from zoo.spec import Spec


class Attention(Spec, axis="attention"):
    """How a token reads the others."""

    @property
    def visible_window(self) -> int | None:
        """How many keys a query sees, itself included; None for all before it."""
        return None

    @property
    def score_heads(self) -> int:
        """Heads that a position bias is made for."""
        return 0

    @property
    def positioning(self) -> Position | None:
        """The position scheme at work inside, if any."""
        return None

    def ask(self, device: str, dtype: str, **features: Any) -> Ask | None:
        """What this attention asks of a kernel there, or None when it uses none. `features` are Ask's own fields."""
        return None


from zoo.attention import gqa  # noqa: E402, F401  (registers its kinds)
