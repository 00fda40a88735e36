# B rows, P pages of a row, N slots of a pool, S = P·page keys
"""Rows that are read by page: a table of tensors says where their keys lie, so that a pass can be recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.kernels.view.base import KeyView

if TYPE_CHECKING:
    from torch import Tensor


class PagedView(KeyView):
    """Rows whose keys lie in the pages that the slots' table [B, P] lists: row b has as many as the mask's `lengths`
    say. Kernels that read pages where they lie copy nothing."""

    pooled = True

    def read(self, held: Tensor) -> list[Tensor]:
        return [self._by_page(held)[self.slots.table.long()].flatten(1, 2)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return super().attend(q, self._by_page(k), self._by_page(v), pages=self.slots.table, **how)

    def _by_page(self, pool: Tensor) -> Tensor:
        return pool.unflatten(0, (-1, self.slots.page))  # pages page K C
