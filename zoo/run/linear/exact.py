# N rows of a weight (d_out), K its columns (d_in), R rows of x
"""Ways to multiply in the model's dtype: they differ only in the order of summation."""

from __future__ import annotations

from typing import Any

from zoo.lazy import F, Tensor, torch
from zoo.run.linear.base import Processor, Way


class TorchLinear(Way):
    """torch's own F.linear."""

    name = "plain"
    about = "F.linear, the weight as it is"
    packs = False
    any_shape = True

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        return None

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        return weight, bias

    def run(self, x: Tensor, packed: Any) -> Tensor:
        return F.linear(x, *packed)


class Transposed(Way):
    """The weight stored transposed, [K, N]."""

    name = "transposed"
    about = "mm with the weight stored transposed"
    any_shape = True

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        return None if dtype == "float32" else f"is many times slower in {dtype}"

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        return weight.t().contiguous(), bias

    def run(self, x: Tensor, packed: Any) -> Tensor:
        weight, bias = packed
        return torch.matmul(x, weight) if bias is None else torch.matmul(x, weight).add_(bias)


def refuse_onednn(dtype: str, processor: Processor) -> str | None:
    """Return why oneDNN has no fast product in a dtype on a processor; None if it has."""
    if "onednn" not in processor.libraries:
        return "needs a torch built with oneDNN"
    if dtype == "bfloat16" and processor.is_x86 and not processor.features & {"avx512_bf16", "amx"}:
        return "needs AVX-512 BF16 or AMX for bfloat16"
    return f"has no product in {dtype}" if dtype not in ("float32", "bfloat16", "float16") else None


BLOCKED = 8
"""Number of rows of x that oneDNN optimises a weight's layout for. With this layout 1, 8 and 32 rows take 0.64, 0.76
and 1.17 ms; with a layout for 1 row 0.60, 0.98 and 1.35 ms (4096 × 768, float32, AVX-512)."""


class OneDNN(Way):
    """oneDNN with the weight reordered into blocks, as Inductor's freezing uses it."""

    name = "onednn"
    about = "oneDNN, the weight reordered into blocks"
    any_shape = True

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        return refuse_onednn(dtype, processor)

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), BLOCKED), bias

    def run(self, x: Tensor, packed: Any) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, *packed, "none", [], "")


class OneDNNPairs(OneDNN):
    """oneDNN, with a single row computed as two.

    oneDNN sums a single row in another order than two or more rows. With a single row computed as two, a row's bits do
    not depend on the number of rows.
    """

    name = "onednn_pairs"
    about = "oneDNN, one row computed as two, so that a row's bits do not depend on the number of rows"
    on_request = True
    any_shape = False

    def run(self, x: Tensor, packed: Any) -> Tensor:
        return super().run(x.expand(2, -1), packed)[:1] if x.shape[0] == 1 else super().run(x, packed)
