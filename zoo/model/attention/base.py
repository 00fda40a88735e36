"""Attention: one file for each family of it, and this base."""

from __future__ import annotations

from typing import Any, ClassVar

from zoo.kernels.base import Ask
from zoo.model.position.base import Position
from zoo.spec import Spec


class Attention(Spec, axis="attention"):
    """How a token reads the others."""

    takes_global: ClassVar[bool] = False  # whether some tokens can be global: `step.extra["global"]` [B, T]

    takes_memory: ClassVar[bool] = False  # whether it can read an encoder's output in place of the tokens

    def check_cross(self) -> None:
        """Raises ValueError for a field that means nothing in cross-attention."""

    @property
    def visible_window(self) -> int | None:
        """How many keys a causal query sees, itself included, or how far one that sees both ways; None for all."""
        return None

    @property
    def visible_chunk(self) -> int | None:
        """The stretch of positions within which tokens see each other, where only those do."""
        return None

    @property
    def score_heads(self) -> int:
        """Heads that a position bias is made for."""
        return 0

    @property
    def positioning(self) -> Position | None:
        """The position scheme at work inside, if any."""
        return None

    @property
    def rotary_width(self) -> int:
        """Channels of a head that a position scheme may rotate."""
        return 0

    def prepare(self, m: Any, step: Any) -> None:
        """Puts into `step.extra` what all layers of this kind share in one forward. `m` is the model's position scheme
        with its weights."""

    def ask(self, dtype: str, **features: Any) -> Ask | None:
        """What this attention asks of a kernel, or None when it uses none. `features` are those fields of Ask that the
        moment decides: a Mask's, and whether there are gradients."""
        return None

    def decode_ask(self, dtype: str, new: int, **features: Any) -> Ask | None:
        """The same of `new` tokens that come after those in a cache."""
        return self.ask(dtype, **features)
