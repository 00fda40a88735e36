"""Choose how a cache lies on a device: whether its rows are read by page table, and how large a page is."""

from __future__ import annotations

from typing import Any

from zoo.kernels import machine_of
from zoo.kernels.view.paging import PAGE, choose_page


def choose_layout(
    tower: Any, dtype: Any, device: Any, kernel: str, *, paged: bool | None = None, page: int | None = None
) -> dict[str, Any]:
    """Store's `paged` and `page` for a decoder on a device. What is None is chosen: by page on any device but a CPU,
    of the size that the kernels installed there read."""
    paged = device.type != "cpu" if paged is None else paged
    return {"paged": paged, "page": page or (_choose_page(tower, dtype, device, kernel) if paged else PAGE)}


def _choose_page(tower: Any, dtype: Any, device: Any, kernel: str) -> int:
    """The page size that suits the attention of a decoder's layers."""
    name, asks = str(dtype).removeprefix("torch."), []
    for block in tower.blocks.values():
        window, features = block.attention.sight.window, {"lengths": True, "short_q": True}
        if block.cache():
            asks.append(block.attention.decode_ask(name, 1, window=window, **features))
        if block.crosses:
            asks.append(block.cross.ask(name, causal=False, **features))
    return choose_page([ask for ask in asks if ask is not None], machine_of(device), kernel)
