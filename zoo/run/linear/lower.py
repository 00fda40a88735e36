# N rows of a weight (d_out), K its columns (d_in), R rows of x, G columns that share a scale
"""Ways to multiply with weights in fewer bits, used only if `weights=` names the precision."""

from __future__ import annotations

import math
from typing import Any

from zoo.lazy import F, Tensor, torch
from zoo.run.linear.base import Processor, Way, describe_processor
from zoo.run.linear.exact import BLOCKED, refuse_onednn

LARGEST_FP16 = 65504.0
MOST_COLUMNS = 2**31 // (255 * 127)  # largest K of an int8 product: its sum of K products of 255 × 127 must fit int32


def _needs_floats(dtype: str) -> str | None:
    """Return why a way cannot convert inputs of a dtype to its own dtype and back; None if it can."""
    return None if dtype in ("float32", "bfloat16", "float16") else f"has no product in {dtype}"


class Half(Way):
    """FBGEMM: weights in float16, inputs and sums in float32."""

    name = "fp16_fbgemm"
    about = "FBGEMM, weights in float16, inputs and sums in float32"
    precision = "fp16"

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        if "fbgemm" not in processor.libraries or not processor.is_x86:
            return "needs a torch built with FBGEMM, on x86"
        return _needs_floats(dtype)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())

    def run(self, x: Tensor, packed: Any) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), packed).to(x.dtype)

    def count_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        return 2 * shape[0] * shape[1]

    def suits(self, weight: Tensor) -> str | None:
        return None if float(weight.detach().abs().max()) <= LARGEST_FP16 else "has weights beyond float16's range"


class Brain(Way):
    """oneDNN with weights and inputs in bfloat16, sums in float32."""

    name = "bf16_onednn"
    about = "oneDNN, weights and inputs in bfloat16"
    any_shape = True
    precision = "bf16"

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        return refuse_onednn("bfloat16", processor) or _needs_floats(dtype)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), BLOCKED)
        return packed, None if bias is None else bias.bfloat16()

    def run(self, x: Tensor, packed: Any) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), *packed, "none", [], "").to(x.dtype)

    def count_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        return 2 * shape[0] * shape[1]


class BrainPlain(Brain):
    """torch's own product with weights and inputs in bfloat16."""

    name = "bf16_plain"
    about = "mv or F.linear, weights and inputs in bfloat16"
    any_shape = False

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        return _needs_floats(dtype)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        return weight.bfloat16().contiguous(), None if bias is None else bias.bfloat16()

    def run(self, x: Tensor, packed: Any) -> Tensor:
        weight, bias = packed
        if bias is None and x.shape[0] == 1:
            return torch.mv(weight, x[0].bfloat16())[None].to(x.dtype)
        return F.linear(x.bfloat16(), weight, bias).to(x.dtype)


def quantize_rows(weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Quantise each row of a weight [N, K] to integers from −most to most: int8 [N, K], and the rows' scales [N] in
    float32. A row of zeros has scale 1."""
    wide = weight.float()
    scale = wide.abs().amax(1) / most
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (wide / scale[:, None]).round_().clamp_(-most, most).to(torch.int8), scale


class Int8Weights(Way):
    """Weights in int8 with a scale for each row; inputs in bfloat16, sums in float32."""

    name = "int8_weights"
    about = "weights in int8 by rows, inputs in bfloat16"
    precision = "int8"

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        if shape[1] % 16:
            return f"needs a multiple of 16 columns, found {shape[1]}"  # torch's loop handles no remainder
        return _needs_floats(dtype)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        whole, scale = quantize_rows(weight, 127)
        return whole, scale.bfloat16(), bias

    def run(self, x: Tensor, packed: Any) -> Tensor:
        whole, scale, bias = packed
        y = torch._weight_int8pack_mm(x.bfloat16(), whole, scale).to(x.dtype)  # type: ignore[reportPrivateImportUsage]
        return y if bias is None else y.add_(bias)

    def count_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        return shape[0] * (shape[1] + 2)


MIDDLE = 128
"""Zero point of unsigned inputs: −127 to 127 become 1 to 255."""


class Int8Both(Way):
    """Weights and inputs in int8 with a scale per row; sums in int32.

    torch's operator has one scale for all of x. This scale is set to 1, and each row of the result is multiplied by the
    row's own scale afterwards, so that a row does not depend on its neighbours. On x86 without AMX inputs are unsigned,
    with a zero point that oneDNN subtracts from the sums: VNNI multiplies unsigned inputs by signed weights, and for
    signed inputs oneDNN has only reference code, which is hundreds of times slower.
    """

    name = "int8_both"
    about = "oneDNN, weights and inputs in int8 by rows"
    precision = "int8"

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        if "onednn" not in processor.libraries:
            return "needs a torch built with oneDNN"
        if processor.is_x86 and not processor.features & {"vnni", "amx"}:
            return "needs VNNI or AMX: without them its sums saturate, and are slower than float32's"
        if shape[1] > MOST_COLUMNS:
            return f"takes at most {MOST_COLUMNS:,} columns, found {shape[1]:,}: sums would leave int32"
        return _needs_floats(dtype)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        whole, scale = quantize_rows(weight, 127)
        packed = torch.ops.onednn.qlinear_prepack(whole, [BLOCKED, weight.shape[1]])
        processor = describe_processor()
        zero = MIDDLE if processor.is_x86 and "amx" not in processor.features else 0
        point = zero, torch.tensor(float(zero)), torch.uint8 if zero else torch.int8
        return packed, scale, torch.zeros(weight.shape[0], dtype=torch.int64), point, torch.tensor(1e-30), bias

    def run(self, x: Tensor, packed: Any) -> Tensor:
        weight, scale, zeros, (zero, middle, kind), least, bias = packed
        largest = torch.linalg.vector_norm(x, math.inf, 1, True)
        own = torch.add(least, largest.float(), alpha=1 / 127)  # above 0 for a row of zeros, in one call
        whole = torch.addcdiv(middle, x.float(), own).round_().to(kind)
        rest = (None, 1.0, 0, torch.float32, "none", [], "")
        y = torch.ops.onednn.qlinear_pointwise(whole, 1.0, zero, weight, scale, zeros, *rest).mul_(own).to(x.dtype)
        return y if bias is None else y.add_(bias)

    def count_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        return shape[0] * (shape[1] + 12)


class Int4(Way):
    """Weights in 4 bits with a scale and a zero point per group of columns; inputs in bfloat16, sums in float32."""

    name = "int4_weights"
    about = "weights in int4 by groups of columns, inputs in bfloat16"
    precision = "int4"
    groups = (32, 64, 128, 256)  # group sizes of torch's operator; the smallest has the least error

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        if shape[1] % self.groups[0]:
            return f"needs a multiple of {self.groups[0]} columns, found {shape[1]}"
        if shape[0] % 16:
            return f"needs a multiple of 16 rows, found {shape[0]}"
        return _needs_floats(dtype)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        group = self.groups[0]
        parts = weight.float().unflatten(1, (-1, group))  # N K/G G
        low, high = parts.amin(2), parts.amax(2)
        scale = ((high - low) / 15).clamp_(min=1e-8).bfloat16().float()
        zero = (low + 8 * scale).bfloat16().float()  # a value q stands for (q − 8)·scale + zero
        whole = ((parts - zero[..., None]) / scale[..., None] + 8).round_().clamp_(0, 15).to(torch.int32).flatten(1)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
        scales = torch.stack((scale, zero), -1).transpose(0, 1).contiguous().bfloat16()  # K/G N 2
        return packed, group, scales, bias

    def run(self, x: Tensor, packed: Any) -> Tensor:
        *weight, bias = packed
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), *weight).to(x.dtype)
        return y if bias is None else y.add_(bias)

    def count_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        return shape[0] * shape[1] // 2 + 4 * shape[0] * shape[1] // self.groups[0]
