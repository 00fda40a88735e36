"""Choose the layout of a KV cache on a device: whether rows are read by page table, the page size, and which rows share
a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.kernels import machine_of, select
from zoo.kernels.view.page_tables import PAGE, choose_page, reads_pages
from zoo.lazy import torch

if TYPE_CHECKING:
    from zoo.kernels import AttentionQuery
    from zoo.model.tower import Tower


def choose_layout(
    tower: Tower,
    dtype: torch.dtype,
    device: torch.device,
    kernel: str,
    *,
    paged: bool | None = None,
    page: int | None = None,
) -> dict[str, Any]:
    """Return the arguments `paged` and `page` of the cache (`Store`) for a decoder on a device. By default the cache is
    paged on any device but a CPU, with the page size that most layers' kernels read in place."""
    paged = device.type != "cpu" if paged is None else paged
    if paged and page is None:
        asks = [ask for ask in _list_queries(tower, dtype) if ask is not None]
        page = choose_page(asks, machine_of(device), kernel)
    return {"paged": paged, "page": page or PAGE}


def takes_varlen(tower: Tower, dtype: torch.dtype, device: torch.device, kernel: str, page: int) -> bool:
    """Whether the kernels of all layers take prompts and decoding rows in one pass over a paged cache (varlen). Rows
    then have any number of new tokens, lie end to end, and their keys are read in place. Other kernels would pad every
    row to the longest."""
    asks = _list_queries(tower, dtype, varlen=True, page=page)
    return all(ask is not None and reads_pages(ask, machine_of(device), kernel) for ask in asks)


def name_kernels(tower: Tower, dtype: torch.dtype, device: torch.device, kernel: str, page: int) -> list[str]:
    """Return the names of the kernels that read a paged cache in a decoding step."""
    asks = _list_queries(tower, dtype, page=page)
    return sorted({select(ask, machine_of(device), kernel).name for ask in asks if ask is not None})


def _list_queries(tower: Tower, dtype: torch.dtype, **features: Any) -> list[AttentionQuery | None]:
    """List the AttentionQuery of each kind of layer, over a cache whose rows differ in length; None for a kind that
    uses no kernel."""
    name, asks = str(dtype).removeprefix("torch."), []
    features = {"lengths": True, "short_q": True, **features}
    for block in tower.blocks.values():
        window = block.attention.sight.window
        if block.cache():
            asks.append(block.attention.decode_ask(name, 1, window=window, **features))
        if block.crosses:
            asks.append(block.cross.ask(name, causal=False, **features))  # type: ignore[union-attr]
    return asks
