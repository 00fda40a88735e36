"""Read BitNet's ternary weights: −1, 0 and 1 in two bits, and one scale per tensor (Ma et al., 2024, b1.58)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.quantised.base import QuantisedLayout, ReadTensor, refuse
from zoo.checkpoint.tensor_files import Header
from zoo.lazy import Tensor, torch

IN_A_BYTE = 4


class Ternary(QuantisedLayout):
    """Four weights a byte: with R rows of bytes, row r of the weight is in row r mod R, at bits 2·(r div R). The stored
    number is the weight plus 1.

    If `linear_class` is autobitlinear, weights are multiplied by the scale, else divided by it. The published model
    rounds the inputs of products to 8 bits; here they stay in the model's dtype.
    """

    marks = (".weight_scale",)
    ends: ClassVar[Mapping[str, str]] = {"weight": ".weight", "scale": ".weight_scale"}

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        packed = parts["weight"]
        if packed.dtype != "U8":
            raise refuse(
                packed, f"is {packed.dtype}, no packed ternary weight", "U8, as quantization_mode=offline has it"
            )
        self.packed_rows = packed.shape[0]
        self.shape = (IN_A_BYTE * self.packed_rows, *packed.shape[1:])
        self.multiplies = settings.get("linear_class") == "autobitlinear"

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        rows = torch.arange(start, stop)
        shifts = 2 * (rows // self.packed_rows)
        codes = (held["weight"][rows % self.packed_rows].int() >> shifts[:, None]) & 3
        scale = held["scale"].float().reshape(())
        return (codes - 1).float() * (scale if self.multiplies else 1 / scale)
