# T queries, S keys, R rows of the table in reach, D model width
"""Relative positions as vectors that attention multiplies with queries and keys: one table for all layers (DeBERTa)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.norm import WholeNorm
from zoo.model.position.base import WithAbsolute
from zoo.spec import Embedding

if TYPE_CHECKING:
    from zoo.model.step import Weights


class RelativePosition(WithAbsolute, kind="relative"):
    """A trained vector for each distance i − j between a query and a key (He et al., 2020, DeBERTa).

    Distances are clamped to −k … k − 1: k is `max_relative_positions`, or `position_buckets` if given. Only
    `attention=disentangled` reads the table; other attentions refuse this scheme.
    """

    inside: ClassVar[bool] = True  # type: ignore[misc]

    max_relative_positions: PositiveInt
    """Largest distance, in tokens. Without `position_buckets` each distance up to it has a vector of its own."""
    position_buckets: PositiveInt | None = None
    """Number of buckets of distances on either side. The first half have one distance each; the others are on a
    logarithmic scale that ends at `max_relative_positions` (DeBERTa v2 and v3; He et al., 2021)."""
    norm: WholeNorm | None = None
    """Norm of the table before each pass (DeBERTa v2 and v3; He et al., 2021)."""

    def __post_init__(self) -> None:
        buckets, farthest = self.position_buckets, self.max_relative_positions
        if buckets is not None and (buckets < 2 or farthest - 1 <= buckets // 2):
            raise ValueError(
                f"position_buckets={buckets} must be at least 2, and half of it below max_relative_positions - 1 = "
                f"{farthest - 1} (null gives each distance a vector of its own)"
            )
        if self.absolute is not None and not self.absolute.embeds:
            raise ValueError(f"absolute is '{self.absolute.kind}', which adds nothing to the embedding (learned does)")

    @property
    def span(self) -> int:
        """Number of rows of the table for keys before the query. The other keys have equally many rows."""
        return self.position_buckets or self.max_relative_positions

    def parts(self, d_model: int) -> dict[str, Any]:
        norm = {"norm": self.norm} if self.norm else {}
        absolute = {"absolute": self.absolute} if self.absolute else {}
        return {"table": Embedding(2 * self.span, d_model), **norm, **absolute}

    def check(self, head_dim: int) -> None:
        raise ValueError("position 'relative' is read by no attention but disentangled (choose that, or another)")

    def rows(self, length: int) -> int:
        """The number of rows of the table that a sequence of `length` tokens can reach."""
        return 2 * min(length, self.span)

    def look_up(self, m: Weights, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the rows in reach [R, D], and the row [T, S] of each pair of queries [T] and keys [S]."""
        rows = self.rows(max(queries.shape[0], keys.shape[0]))
        half = rows // 2
        table = m.table.weight[self.span - half : self.span + half]  # R D
        if self.norm:
            table = m.norm(table)
        distance = self.bucket(queries[:, None] - keys[None, :])  # T S
        return table, (distance + half).clamp(0, rows - 1)

    def bucket(self, distance: Tensor) -> Tensor:
        """Find the bucket of each distance, with its sign. A distance out of reach gets a bucket beyond the last, which
        `look_up` clamps."""
        if self.position_buckets is None:
            return distance
        half = self.position_buckets // 2
        far = distance.abs().clamp(min=half).float()
        # In float32 and with torch's log on both sides, as in training: at a bucket's edge the rounding decides.
        whole = torch.full((), (self.max_relative_positions - 1) / half, dtype=torch.float32, device=distance.device)
        steps = torch.ceil(torch.log(far / half) / torch.log(whole) * (half - 1)).long() + half
        return torch.where(distance.abs() <= half, distance, steps * distance.sign())
