"""Read weights in float4 (E2M1), two a byte, with a scale for each 32 (MXFP4) or 16 (NVFP4) of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.quantised.base import QuantisedLayout, ReadTensor, refuse, unpack_nibbles
from zoo.checkpoint.quantised.scaled import read_scales
from zoo.checkpoint.tensor_files import Header
from zoo.lazy import Tensor, torch

POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*POSITIVE, *(-each for each in POSITIVE))
"""The values of the sixteen codes (OCP Microscaling Formats, 2023, 5.3.3)."""


GROUP = 16
"""Number of values that share a scale in NVFP4 (NVIDIA, 2025)."""


class MXFP4(QuantisedLayout):
    """gpt-oss' experts (OpenAI, 2025): blocks [E, d_out, G, 16] of 32 values each, one scale for each block.

    A stored scale e, [E, d_out, G], means 2^(e − 127). The dequantised weight is [E, d_in, d_out], as in the model's
    class.
    """

    marks = ("_blocks",)
    ends: ClassVar[Mapping[str, str]] = {"blocks": "_blocks", "scales": "_scales"}
    target = ""

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        blocks, scales = parts["blocks"], parts["scales"]
        if len(blocks.shape) != 4 or blocks.shape[-1] != 16 or scales.shape != blocks.shape[:-1]:
            found = f"has shape {list(blocks.shape)} beside scales {list(scales.shape)}"
            raise refuse(blocks, found, "[experts, rows, groups, 16] and [experts, rows, groups]")
        experts, height, groups, _ = blocks.shape
        self.shape = (experts, groups * 32, height)

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        codes = unpack_nibbles(held["blocks"][start:stop])  # E R G 32
        scales = read_scales(held["scales"][start:stop], exponents=True)
        return (torch.tensor(E2M1)[codes] * scales.unsqueeze(-1)).flatten(-2).transpose(1, 2)


class PackedFloat4(QuantisedLayout):
    """NVFP4 and MXFP4 as compressed-tensors stores them: codes [d_out, d_in / 2], scales [d_out, d_in / group].

    NVFP4's scales are float8, and are divided by a scale of the whole tensor (NVIDIA, 2025).
    """

    marks = (".weight_packed",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": ".weight_packed",
        "scale": ".weight_scale",
        "whole": ".weight_global_scale",
        "input": ".input_global_scale",
    }
    optional = frozenset({"whole", "input"})
    stored = ("U8",)  # two codes

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        height, packed = parts["weight"].shape
        self.shape, self.exponents = (height, 2 * packed), parts["scale"].dtype in ("U8", "F8_E8M0")
        groups = parts["scale"].shape[-1]
        if parts["scale"].shape != (height, groups) or self.shape[1] % groups:
            raise refuse(parts["scale"], f"scales no weight of shape {list(self.shape)}", "a whole file")
        self.group = self.shape[1] // groups

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        scales = read_scales(held["scale"][start:stop], self.exponents)
        if "whole" in held:
            scales = self.scale_whole(scales, held["whole"].float())
        values = torch.tensor(E2M1)[unpack_nibbles(held["weight"][start:stop])]
        return values * scales.repeat_interleave(self.group, -1)

    def scale_whole(self, scales: Tensor, whole: Tensor) -> Tensor:
        """Combine the scales of groups with the scale of the tensor."""
        return scales / whole


class Float4Beside(PackedFloat4):
    """MXFP4 as in DeepSeek-V4's (2026) experts: two codes a byte in `weight`, and a tensor `scale`."""

    marks = (".scale",)
    ends: ClassVar[Mapping[str, str]] = {"weight": ".weight", "scale": ".scale"}
    optional = frozenset()
    stored = ("I8",)


class Float4Experts(QuantisedLayout):
    """NVFP4 of stacked experts, as in Inkling 2 (2026): codes [E, d_out, d_in / 2], float8 scales [E, d_out, d_in /
    16], and a scale for each expert: its stored largest value divided by a stored denominator."""

    marks = ("_amax",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": "",
        "scale": "_scale",
        "largest": "_amax",
        "denominator": "_outer_scale_denominator",
    }
    target = ""

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        weight, scale = parts["weight"], parts["scale"]
        self.shape = (*weight.shape[:-1], 2 * weight.shape[-1])
        if len(weight.shape) != 3 or scale.shape != (*weight.shape[:2], self.shape[-1] // GROUP):
            found = f"has shape {list(weight.shape)} beside scales {list(scale.shape)}"
            raise refuse(weight, found, f"[experts, rows, columns / 2] and [experts, rows, columns / {GROUP}]")

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        whole = (held["largest"].float() / held["denominator"].float()).expand(self.shape[0])[start:stop]
        scales = held["scale"][start:stop].float() * whole[:, None, None]
        values = torch.tensor(E2M1)[unpack_nibbles(held["weight"][start:stop])]
        return values * scales.repeat_interleave(GROUP, -1)


class ModelOptFloat4(PackedFloat4):
    """NVFP4 as NVIDIA's Model Optimizer stores it: scales are multiplied by the tensor's scale."""

    marks = (".weight_scale_2",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": ".weight",
        "scale": ".weight_scale",
        "whole": ".weight_scale_2",
        "input": ".input_scale",
    }

    def scale_whole(self, scales: Tensor, whole: Tensor) -> Tensor:
        return scales * whole
