"""Time a model's bare linears: only the matrix products of one decoding step, by each way to multiply. This is a lower
bound on the time of a decoding step.

The weights are a whole model's, so that they are read from memory rather than caches, as in a model. The code is
independent of zoo's own products, so that the two can be compared.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import timing
import torch
from torch.nn import functional as F

Product = Callable[[torch.Tensor], torch.Tensor]
Prepare = Callable[[torch.Tensor, int], Product]
SPEND = 0.3  # seconds for the laps of one way


def list_shapes(shape: dict[str, Any]) -> list[tuple[int, int]]:
    """List the (outputs, inputs) of a step's products in order: q, k, v, o, gate, up, down of each layer; the head."""
    width, hidden = shape["d_model"], shape["d_ff"]
    q, kv = shape["n_heads"] * shape["head_dim"], shape["n_kv_heads"] * shape["head_dim"]
    layer = [(q, width), (kv, width), (kv, width), (width, q), (hidden, width), (hidden, width), (width, hidden)]
    return layer * shape["n_layers"] + [(shape["vocab_size"], width)]


def use_plain(weight: torch.Tensor, rows: int) -> Product:
    return lambda x: F.linear(x, weight)


def use_swapped(weight: torch.Tensor, rows: int) -> Product:
    return lambda x: torch.mm(weight, x.t()).t()


def use_transposed(weight: torch.Tensor, rows: int) -> Product:
    stored = weight.t().contiguous()
    return lambda x: torch.mm(x, stored)


def use_mkl(weight: torch.Tensor, rows: int) -> Product:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight, None, rows)


def use_onednn(weight: torch.Tensor, rows: int) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def use_fp16(weight: torch.Tensor, rows: int) -> Product:
    packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)


def use_bf16(weight: torch.Tensor, rows: int) -> Product:
    weight = weight.bfloat16()
    return lambda x: F.linear(x, weight)


def use_bf16_packed(weight: torch.Tensor, rows: int) -> Product:
    return use_onednn(weight.bfloat16(), rows)


def use_int8(weight: torch.Tensor, rows: int) -> Product:
    whole, scale = round_rows(weight)
    scale = scale.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x, whole, scale)


def use_int8_both(weight: torch.Tensor, rows: int) -> Product:
    """Round the rows of x to int8, too. The operator has one scale for all of x, which is set to 1; rows are scaled
    afterwards. Without AMX, oneDNN is fast only for unsigned inputs, so 128 is added as a zero point."""
    whole, scale = round_rows(weight)
    zero, kind = (0, torch.int8) if torch.cpu._is_amx_tile_supported() else (128, torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(whole, [rows, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    rest = (None, 1.0, 0, torch.float32, "none", [], "")

    def product(x: torch.Tensor) -> torch.Tensor:
        rounded, own = round_rows(x)
        moved = (rounded.short() + zero).to(kind)
        return torch.ops.onednn.qlinear_pointwise(moved, 1.0, zero, packed, scale, zeros, *rest) * own[:, None]

    if sums_saturate():
        raise NotImplementedError("without VNNI its sums of two products saturate at 16 bits")
    return product


@functools.cache
def sums_saturate() -> bool:
    """Test whether sums of int8 products overflow (they saturate at 16 bits without VNNI)."""
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    packed, scale = torch.ops.onednn.qlinear_prepack(largest, [1, 64]), torch.ones(64)
    rest = (None, 1.0, 0, torch.float32, "none", [], "")
    zeros = torch.zeros(64, dtype=torch.int64)
    sums = torch.ops.onednn.qlinear_pointwise(largest[:1], 1.0, 0, packed, scale, zeros, *rest)
    return bool((sums != 64 * 127**2).any())


def round_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to int8. Returns the integers and the rows' scales."""
    scale = matrix.abs().amax(1) / 127
    return (matrix / scale[:, None]).round().to(torch.int8), scale


WAYS: dict[str, dict[str, tuple[torch.dtype, Prepare]]] = {
    "fp32": {
        "F.linear": (torch.float32, use_plain),
        "mm(W, x.T)": (torch.float32, use_swapped),
        "stored transposed": (torch.float32, use_transposed),
        "MKL packed": (torch.float32, use_mkl),
        "oneDNN packed": (torch.float32, use_onednn),
    },
    "bf16": {"bf16 F.linear": (torch.bfloat16, use_bf16), "bf16 oneDNN packed": (torch.bfloat16, use_bf16_packed)},
    "fp16": {"fp16 weights": (torch.float32, use_fp16)},
    "int8": {"int8 weight-only": (torch.bfloat16, use_int8), "int8 both": (torch.float32, use_int8_both)},
    "int4": {},
}
"""By precision: the ways to multiply, each with the dtype of its inputs."""


def time_linears(job: dict[str, Any], precisions: list[str]) -> dict[str, dict[str, float]]:
    """Time the ways to multiply at each of these precisions. Returns, by precision, the ms per step of each way that
    runs here."""
    torch.manual_seed(0)
    weights = [torch.randn(shape) / shape[1] ** 0.5 for shape in list_shapes(job["shape"])]
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for precision in precisions:
            ways = {way: _time_way(weights, job["batch"], *how) for way, how in WAYS[precision].items()}
            found[precision] = {way: time for way, time in ways.items() if time is not None}
    return found


def _time_way(weights: list[torch.Tensor], rows: int, dtype: torch.dtype, prepare: Prepare) -> float | None:
    """Time one way in milliseconds a step; None if this build of torch, or this processor, does not support it."""
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=dtype) for weight in weights}
    try:
        steps = [(prepare(weight, rows), inputs[weight.shape[1]]) for weight in weights]
        steps[0][0](steps[0][1])
    except (RuntimeError, AttributeError, NotImplementedError):
        return None

    def lap() -> None:
        for product, x in steps:
            product(x)

    lap()
    return statistics.median(timing.time_calls(lap, SPEND)) * 1e3
