# B rows, P pages of a row, N slots of a pool, S = P·page keys
"""Rows read by page table. Tensors hold the places of keys, so that a pass can be recorded as a CUDA graph."""

from __future__ import annotations

from typing import Any

from zoo.kernels.view.base import KeyView
from zoo.lazy import Tensor


class PagedView(KeyView):
    """Rows whose keys lie in the pages of `slots.table` [B, P], `mask.lengths` [B] keys each. Some kernels read the
    pages in place."""

    pooled = True

    def read(self, held: Tensor) -> list[Tensor]:
        return [self._by_page(held)[self.slots.table.long()].flatten(1, 2)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return super().attend(q, self._by_page(k), self._by_page(v), pages=self.slots.table, **how)

    def _by_page(self, pool: Tensor) -> Tensor:
        return pool.unflatten(0, (-1, self.slots.page))  # pages page K C
