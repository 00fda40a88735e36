"""Choose the layout of a KV cache on a device: whether rows are read by page table, and the page size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.kernels import machine_of
from zoo.kernels.view.page_tables import PAGE, choose_page

if TYPE_CHECKING:
    import torch

    from zoo.model.tower import Tower


def choose_layout(
    tower: Tower, dtype: Any, device: torch.device, kernel: str, *, paged: bool | None = None, page: int | None = None
) -> dict[str, Any]:
    """Return the arguments `paged` and `page` of the cache (`Store`) for a decoder on a device. By default the cache is
    paged on any device but a CPU, with the page size that the kernels of most layers read in place there."""
    paged = device.type != "cpu" if paged is None else paged
    return {"paged": paged, "page": page or (_choose_page(tower, dtype, device, kernel) if paged else PAGE)}


def _choose_page(tower: Tower, dtype: torch.dtype, device: torch.device, kernel: str) -> int:
    """Return the page size that the kernels of most layers read in place."""
    name, asks = str(dtype).removeprefix("torch."), []
    for block in tower.blocks.values():
        window, features = block.attention.sight.window, {"lengths": True, "short_q": True}
        if block.cache():
            asks.append(block.attention.decode_ask(name, 1, window=window, **features))
        if block.crosses:
            asks.append(block.cross.ask(name, causal=False, **features))  # type: ignore[union-attr]
    return choose_page([ask for ask in asks if ask is not None], machine_of(device), kernel)
