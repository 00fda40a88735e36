"""Read integers of 2 to 8 bits packed into words: with a scale and a zero point for each group of inputs, or ternary
with one scale per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.quantised.base import QuantisedLayout, ReadTensor, refuse, unpack_bits
from zoo.checkpoint.tensor_files import Header
from zoo.lazy import Tensor, torch

IN_A_BYTE = 4


class PackedIntegers(QuantisedLayout):
    """compressed-tensors' `pack-quantized`: words [d_out, d_in · bits / 32], packed along the inputs.

    A number n is stored as n + 2^(bits − 1). Zero points are packed along the outputs.
    """

    marks = (".weight_packed",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": ".weight_packed",
        "scale": ".weight_scale",
        "shape": ".weight_shape",
        "zero": ".weight_zero_point",
        "groups": ".weight_g_idx",
    }
    optional = frozenset({"zero", "groups"})
    stored = ("I32",)
    grain = 32

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        height, width = (int(each) for each in read(parts["shape"]))
        words, groups = parts["weight"].shape[-1], parts["scale"].shape[-1]
        stated = dict.fromkeys(
            int((each.get("weights") or {}).get("num_bits") or 0) for each in settings["config_groups"].values()
        )
        fitting = [bits for bits in stated if bits and -(-width * bits // 32) == words]
        if len(fitting) != 1 or parts["weight"].shape[0] != height:
            found = f"has shape {list(parts['weight'].shape)} for a weight {[height, width]}"
            raise refuse(parts["weight"], found, f"one of {', '.join(map(str, stated))} bits, without padding")
        self.shape, self.bits, self.group = (height, width), fitting[0], -(-width // groups)

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        width = self.shape[1]
        values = unpack_bits(held["weight"][start:stop], self.bits, width).float() - 2 ** (self.bits - 1)
        place = held["groups"].long() if "groups" in held else torch.arange(width) // self.group
        if "zero" in held:
            first, last = start * self.bits // 32, -(-stop * self.bits // 32)
            zeros = unpack_bits(held["zero"][first:last].t(), self.bits, stop - start).t()  # rows × groups
            values -= (zeros.float() - 2 ** (self.bits - 1))[:, place]
        return values * held["scale"][start:stop].float()[:, place]


class GPTQ(QuantisedLayout):
    """GPTQ's files (Frantar et al., 2022; AutoGPTQ, GPTQModel): words [d_in · bits / 32, d_out], packed along the
    inputs; scales [G, d_out]; zero points packed along the outputs; `g_idx`, the group of each input.

    The first version of the format stores zero points minus 1, `gptq_v2` stores them unchanged.
    """

    marks = (".qweight",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": ".qweight",
        "zero": ".qzeros",
        "scale": ".scales",
        "groups": ".g_idx",
    }
    optional = frozenset({"groups"})
    grain = 32

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        words, height = parts["weight"].shape
        inputs = parts["groups"].shape[0] if "groups" in parts else words * 32 // int(settings["bits"])
        self.shape, self.bits = (height, inputs), words * 32 // max(1, inputs)
        if self.bits not in (2, 3, 4, 8) or inputs * self.bits != words * 32 or height * self.bits % 32:
            raise refuse(parts["weight"], f"has shape {[words, height]} for {inputs} inputs", "2, 3, 4 or 8 bits")
        self.group = -(-inputs // parts["scale"].shape[0])
        self.offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        inputs = self.shape[1]
        values = unpack_bits(held["weight"][:, start:stop].t().contiguous(), self.bits, inputs)
        first, last = start * self.bits // 32, -(-stop * self.bits // 32)
        zeros = unpack_bits(held["zero"][:, first:last].contiguous(), self.bits, stop - start)
        zeros = ((zeros + self.offset) & (2**self.bits - 1)).t()
        place = held["groups"].long() if "groups" in held else torch.arange(inputs) // self.group
        return (values - zeros[:, place]).float() * held["scale"][:, start:stop].float().t()[:, place]


class AWQ(QuantisedLayout):
    """AWQ's `gemm` files (Lin et al., 2023): words [d_in, d_out / 8] of 4-bit numbers, packed along the outputs.

    The order of outputs in a word is 0, 2, 4, 6, 1, 3, 5, 7. Zero points are packed likewise, [G, d_out / 8]; scales
    are [G, d_out].
    """

    marks = (".qweight",)
    ends: ClassVar[Mapping[str, str]] = {"weight": ".qweight", "zero": ".qzeros", "scale": ".scales"}
    grain = 8

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        inputs, words = parts["weight"].shape
        groups = parts["scale"].shape[0]
        self.shape, self.group = (words * 8, inputs), inputs // max(1, groups)
        if parts["zero"].shape != (groups, words) or parts["scale"].shape[1] != words * 8 or inputs % groups:
            found = f"has shape {[inputs, words]} beside scales {list(parts['scale'].shape)}"
            raise refuse(parts["weight"], found, "4 bits in AWQ's gemm layout")

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        values, zeros = (self._unpack(held[each][:, start // 8 : stop // 8]) for each in ("weight", "zero"))
        place = torch.arange(self.shape[1]) // self.group
        return (values - zeros[place]).float().t() * held["scale"][:, start:stop].float()[place].t()

    @staticmethod
    def _unpack(words: Tensor) -> Tensor:
        """Unpack words [N, W] to numbers [N, 8 W] in the order of the outputs."""
        codes = unpack_bits(words.contiguous(), 4, words.shape[1] * 8).unflatten(-1, (-1, 8))
        return codes[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(-2)


class Ternary(QuantisedLayout):
    """BitNet's −1, 0 and 1 in two bits (Ma et al., 2024, b1.58), four weights a byte: with R rows of bytes, row r of
    the weight is in row r mod R, at bits 2·(r div R). The stored number is the weight plus 1.

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
