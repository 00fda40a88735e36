# B rows, S keys of a row, P pages of a row, H heads, K kv heads, C and Cv widths of keys and values
"""Time the attention of a decoding step over a paged cache, by kernel, relative to the bandwidth of a copy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

from zoo.bench.kernels.accuracy import TRACED
from zoo.bench.kernels.device_timing import time_call
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.kernels import KERNELS, attend, machine_of
from zoo.kernels.base import AttentionQuery
from zoo.kernels.mask import Mask
from zoo.kernels.view.page_tables import choose_page
from zoo.lazy import torch


class DecodedLayer(NamedTuple):
    """The attention of a decoding step in bfloat16: B sequences with one query each, over S keys. With Cv < C the
    values are the keys' first channels (MLA's latents)."""

    name: str
    rows: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    v_width: int


LAYERS = (
    DecodedLayer("GQA, 1 row", 1, 32768, 32, 8, 128, 128),
    DecodedLayer("GQA, 64 rows", 64, 4096, 32, 8, 128, 128),
    DecodedLayer("MLA, 64 rows", 64, 4096, 128, 1, 576, 512),
)
QUICK_LAYERS = (DecodedLayer("GQA, 2 rows", 2, 256, 4, 2, 16, 16), DecodedLayer("MLA, 2 rows", 2, 256, 4, 1, 48, 32))


def list_jobs(settings: Settings, *, kernel: str) -> list[Measurement]:
    """List one job per layer."""
    layers = QUICK_LAYERS if settings.quick else LAYERS
    return [
        Measurement(f"{kernel}: pages, {layer.name}", partial(time_layer, kernel, layer, settings)) for layer in layers
    ]


def time_layer(kernel: str, layer: DecodedLayer, settings: Settings) -> ReportRow:
    """Time a layer's attention and compute the achieved fraction of copy bandwidth: bytes of keys and values, read
    once, ÷ seconds ÷ bandwidth. If the kernel is not timed, the row has the reason instead. A kernel that cannot read
    pages in place copies each sequence's keys first; the time includes these copies."""
    row: ReportRow = {"kernel": kernel, "layer": layer.name, "rows": layer.rows, "keys": layer.keys}
    machine, widths = machine_of(torch.device(settings.device)), (layer.width, layer.v_width)
    ask = AttentionQuery("bfloat16", *widths, layer.heads, layer.kv_heads, lengths=True, short_q=True)
    page = choose_page([ask], machine, kernel)
    if reason := KERNELS[kernel].refuses(replace(ask, page=page), machine):
        return {**row, "refused": reason}
    if settings.quick and kernel in TRACED:
        return {**row, "left_out": "quick: it takes seconds to compile"}
    device, count = settings.device, layer.rows * layer.keys // page
    q = torch.randn(layer.rows, 1, layer.heads, layer.width, device=device).bfloat16()
    k = torch.randn(count, page, layer.kv_heads, layer.width, device=device, dtype=torch.bfloat16)
    v = k[..., : layer.v_width] if layer.v_width < layer.width else torch.randn_like(k)
    pages = torch.randperm(count, device=device, dtype=torch.int32).view(layer.rows, -1)
    mask = Mask(1, layer.keys, lengths=torch.full((layer.rows,), layer.keys, device=device))
    run = partial(attend, q, k, v, mask, scale=layer.width**-0.5, pages=pages, kernel=kernel, chosen=[])
    with torch.inference_mode():
        seconds = time_call(run, device, spend=0.01 if settings.quick else 0.1)
    read = k.nbytes + (0 if layer.v_width < layer.width else v.nbytes)
    share = settings.share_of_copy(read / seconds)
    return {**row, "page": page, "seconds": seconds, "bytes": read, "share_of_copy": share}
