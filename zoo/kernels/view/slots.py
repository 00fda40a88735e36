# B rows, T new tokens, S keys, N slots
"""Where the tokens of a pass lie in the pools of a group of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zoo.kernels.view.base import Run


@dataclass
class Where:
    """Where a pass's tokens lie in the pools of a group.

    `rows` are the runs of slots of each row's keys. With `in_place` the new tokens are the last of these; else `write`
    [n] are the slots of those that stay, and `taken` [n] which of the B·T tokens they are (None: all). With `joins`
    keys are those in the pool, then the new ones; of both [B·S] `taken` go into the pool, once they are read.
    """

    rows: list[list[Run]]
    write: Any = None
    taken: Any = None
    in_place: bool = False
    kept: int | None = None  # in place: so many of each row's new tokens stay, the first ones; None: all
    joins: bool = False
    ragged: bool = False
    index: Any = None  # [B, S] of the slots to read, where rows have no common stride
    first: Any = 0  # the index of the first key, of rows that are alike; by page [B]
    table: Any = None  # [B, P] int32, for rows that are read by page: each row's pages, of `page` slots
    lengths: Any = None  # [B] int32, how many of these slots are read
    page: int = 0

    @property
    def n_keys(self) -> int:
        """How many slots of each row a table lists."""
        return self.table.shape[1] * self.page

    def store(self, pool: Any, new: Any) -> None:
        """Write new tokens [B, T, …] of rows whose slots have no common stride."""
        if self.write is None:
            return
        flat = new.flatten(0, 1)
        flat = (flat if self.taken is None else flat[self.taken]).to(pool.dtype)
        pool[self.write] = flat

    def whole(self, pool: Any) -> Any:
        """The pool as ragged rows read it: by page without the slot of padding, which is its last."""
        return pool if self.table is None else pool[:-1]

    def load(self, pool: Any) -> Any:
        """The rows' keys [B, S, …], of rows that have equally many: a view if their slots have one stride."""
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
