"""Measure the FLOP/s of attention kernels by sequence length, the speedup by a sliding window, and the bandwidth of a
decoding step over a paged cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from zoo.bench.kernels import device_timing
from zoo.bench.kernels.accuracy import TRACED
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.kernels import KERNELS, attend, machine_of
from zoo.kernels.base import AttentionQuery
from zoo.kernels.mask import Mask
from zoo.kernels.view.page_tables import choose_page
from zoo.lazy import torch

ACCOUNTING = (
    "causal attention in bfloat16, heads × width = 2048, rows × length = 16384: 4·T²·H·C / 2 FLOPs a row forward, the "
    "backward pass 2.5 times as many (Dao, 2023). From pages: a decoding step's attention in bfloat16; share = bytes "
    "of keys and values, read once ÷ seconds ÷ copy bandwidth, which counts bytes read and written"
)
PASSES = {"forward": 1.0, "both": 3.5}
"""FLOPs of each measurement relative to the forward pass."""

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
WIDTHS = (64, 128)
CHANNELS, TOKENS = 2048, 16384

WINDOW = (8192, 1024)
"""Tokens per sequence, and keys per window, in the measurement of windows."""

LEAST_GAIN = 1.5
"""Speedup wanted of a sliding window: the best kernel's rate over that of SDPA with a dense mask."""

QUICK = {"lengths": (32, 64), "widths": (16,), "channels": 64, "tokens": 128, "window": (128, 16)}

SHAPE = ("rows", "length", "heads", "head_dim")

SCORES = 3 * 4
"""Bytes per score in a kernel that stores its score matrix: three float32 copies, forward and backward."""


def list_jobs(settings: Settings, *, kernel: str) -> list[Measurement]:
    """List one job per length and head width, one for the sliding window, and the jobs of decoding from a paged
    cache."""
    quick = settings.quick
    lengths, widths = (QUICK["lengths"], QUICK["widths"]) if quick else (LENGTHS, WIDTHS)
    channels, tokens = (QUICK["channels"], QUICK["tokens"]) if quick else (CHANNELS, TOKENS)
    shapes = [(tokens // length, length, channels // width, width) for width in widths for length in lengths]
    rates = [
        Measurement(
            f"{kernel}: {length} tokens, heads of {width}",
            partial(measure_rate, kernel, (rows, length, heads, width), settings),
        )
        for rows, length, heads, width in shapes
    ]
    length, window = QUICK["window"] if quick else WINDOW
    row = (1, length, channels // widths[-1], widths[-1])
    windows = [Measurement(f"{kernel}: window", partial(time_window, kernel, row, window, settings))]
    return [*windows, *rates, *list_page_jobs(settings, kernel=kernel)]


def measure_rate(kernel: str, shape: tuple[int, int, int, int], settings: Settings) -> ReportRow:
    """Measure the FLOP/s of causal attention, forward only and with its backward pass. If the kernel is not timed, the
    row has the reason instead."""
    rows, length, heads, width = shape
    row: ReportRow = {"kernel": kernel, **dict(zip(SHAPE, shape, strict=True))}
    times = time_passes(kernel, shape, None, settings)
    if reason := times.get("refused") or times.get("left_out"):
        return {**row, next(iter(times)): reason}
    work = 4 * rows * length**2 * heads * width / 2
    for way, taken in times.items():
        row[way] = {**taken, "flops_per_second": work * PASSES[way] / taken["seconds"]}
    return row


def time_window(kernel: str, shape: tuple[int, int, int, int], window: int, settings: Settings) -> ReportRow:
    """Time causal attention with a sliding window. If the kernel is not timed, the row has the reason instead."""
    row: ReportRow = {"kernel": kernel, **dict(zip(SHAPE, shape, strict=True)), "window": window}
    return {**row, **time_passes(kernel, shape, window, settings)}


def time_passes(
    kernel: str, shape: tuple[int, int, int, int], window: int | None, settings: Settings
) -> dict[str, Any]:
    """Time the `forward` pass and, if the kernel has a gradient, `both` passes, in seconds. If the kernel is not timed,
    return the reason under "refused" or "left_out" (such as a score matrix that does not fit in memory)."""
    rows, length, heads, width = shape
    mask = Mask(length, length, window=window)
    ask = AttentionQuery("bfloat16", width, width, heads, heads, **mask.features)
    machine = machine_of(torch.device(settings.device))
    if reason := KERNELS[kernel].refuses(ask, machine):
        return {"refused": reason}
    if settings.quick and kernel in TRACED:
        return {"left_out": "quick: it takes seconds to compile"}
    if not KERNELS[kernel].fused and (room := _free_for_scores(settings.device)) < (
        need := SCORES * rows * heads * length**2
    ):
        return {
            "left_out": f"its scores take {need / 1e9:.1f} GB, more than {room / 1e9:.1f} GB, half of the free memory"
        }
    q, k, v, slope = (torch.randn(rows, length, heads, width, device=settings.device).bfloat16() for _ in range(4))
    run = partial(attend, mask=mask, scale=width**-0.5, kernel=kernel)
    slopes = [slope] if KERNELS[kernel].refuses(replace(ask, needs_grad=True), machine) is None else []
    times = device_timing.time_passes(run, [q, k, v], slopes, settings.device, quick=settings.quick)
    return {way: {"seconds": taken} for way, taken in times.items()}


def _free_for_scores(device: str) -> float:
    """Return the bytes that a score matrix may take: half of the free memory of a GPU, 1 GB on a CPU."""
    return torch.cuda.mem_get_info()[0] / 2 if device == "cuda" else 1e9


def find_window_gain(rows: list[ReportRow]) -> dict[str, Any] | None:
    """Find the largest speedup by a sliding window over SDPA with a dense mask, for the `forward` pass and for `both`,
    each with its kernel. None if SDPA was not timed."""
    found = {row["kernel"]: row for row in rows if "window" in row}
    if (masked := found.get("sdpa")) is None or "forward" not in masked:
        return None
    ratios: dict[str, Any] = {"length": masked["length"], "window": masked["window"], "least": LEAST_GAIN}
    for way in ("forward", "both"):
        times = {name: row[way]["seconds"] for name, row in found.items() if way in row and name != "sdpa"}
        if times and way in masked:
            taken, best = min((taken, name) for name, taken in times.items())
            ratios[way] = {"kernel": best, "ratio": masked[way]["seconds"] / taken}
    ways = [ratios[way]["ratio"] for way in ("forward", "both") if way in ratios]
    return {**ratios, "passed": len(ways) == 2 and min(ways) >= LEAST_GAIN}


# ---------------------------------------------------------------- decoding from pages


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


def list_page_jobs(settings: Settings, *, kernel: str) -> list[Measurement]:
    """List the jobs of decoding from a paged cache, one per layer."""
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
        seconds = device_timing.time_call(run, device, spend=0.01 if settings.quick else 0.1)
    read = k.nbytes + (0 if layer.v_width < layer.width else v.nbytes)
    share = settings.share_of_copy(read / seconds)
    return {**row, "page": page, "seconds": seconds, "bytes": read, "share_of_copy": share}
