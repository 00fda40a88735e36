# B rows, T new tokens, S keys, N slots
"""Map the tokens of a pass to slots in the pools of a group of layers."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.kernels.view.base import Run
from zoo.lazy import Tensor


@dataclass
class SlotMapping:
    """The slots of a pass's tokens in the pools of a group of layers.

    `rows` are the runs of slots of each row's keys. With `in_place` the new tokens have the last of these slots.
    Otherwise `write` [n] are the slots in which new tokens are stored, and `taken` [n] the indices of the stored tokens
    among the B·T new ones (None: all are stored). With `overflows` there are more new tokens than a window's pages have
    room for. The keys to read are then those in the pool followed by the new ones, and `taken` counts among all these
    B·S keys.
    """

    rows: list[list[Run]]
    write: Tensor | None = None
    taken: Tensor | None = None
    in_place: bool = False
    kept: int | None = None  # in place: number of each row's new tokens that are stored, the first ones; None: all
    overflows: bool = False
    ragged: bool = False
    index: Tensor | None = None  # [B, S] slots to read, if rows have no common stride
    first: int | Tensor = 0  # token index of the first key; [B] if read by page table
    table: Tensor | None = None  # [B, P] int32 page table, of pages of `page` slots
    lengths: Tensor | None = None  # [B] int32, number of the table's slots to read
    page: int = 0

    @property
    def n_keys(self) -> int:
        """Number of slots per row that the page table lists."""
        return self.table.shape[1] * self.page  # type: ignore[union-attr]

    def store(self, pool: Tensor, new: Tensor) -> None:
        """Write new tokens [B, T, …] to the slots `write` of a pool; nothing if `write` is None."""
        if self.write is None:
            return
        flat = new.flatten(0, 1)
        flat = (flat if self.taken is None else flat[self.taken]).to(pool.dtype)
        pool[self.write] = flat

    def whole(self, pool: Tensor) -> Tensor:
        """Return the pool for ragged rows. If there is a page table, the last slot, which is for padding, is left
        out."""
        return pool if self.table is None else pool[:-1]

    def load(self, pool: Tensor) -> Tensor:
        """Return the keys [B, S, …] of rows of equal length: a view if their slots have one stride."""
        if self.index is not None:
            return pool[self.index]
        if not self.rows[0]:
            return pool.new_empty(len(self.rows), 0, *pool.shape[1:])
        start, stop = self.rows[0][0]
        if len(self.rows) == 1:
            return pool.narrow(0, start, stop - start).unsqueeze(0)
        stride = self.rows[1][0][0] - start
        held = pool[start : start + stride * (len(self.rows) - 1) + stop - start]
        return held.unfold(0, stop - start, stride).movedim(-1, 1)
