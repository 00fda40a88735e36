"""Published recipes that make weights of one architecture into those of another. Each changes tensors by name in place,
and returns a line that says what it did, or None where there was nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, Any]
"""Tensors by name; on meta while a start is only being checked."""


def change(tensors: Tensors, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """Replace a tensor, where it is there."""
    if name in tensors:
        tensors[name] = how(tensors[name])
