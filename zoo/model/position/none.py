"""No position scheme."""

from __future__ import annotations

from zoo.model.position.base import Position


class NoPosition(Position, kind="none"):
    """No positions: only the causal mask conveys order (NoPE; Kazemnejad et al., 2023)."""
