"""Read weights in float8 or int8 with one scale per tensor, row, group of columns or block, torchao's among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.quantised.base import QuantisedLayout, ReadTensor, refuse, spread_blocks
from zoo.checkpoint.tensor_files import Header, read_metadata
from zoo.lazy import Tensor, torch
from zoo.untrusted.json_file import parse_json
from zoo.untrusted.printable import shorten

STORED = ("F8_E4M3", "F8_E5M2", "I8")


class ScaledWeight(QuantisedLayout):
    """float8 or int8 weights: (stored weight − zero point) · scale, where zero points are optional.

    DeepSeek-V3 (2024, 3.3.2) has one scale for each block of 128 × 128 weights, called `scale_inv`, though weights are
    multiplied by it. One-byte scales are exponents e of 2^(e − 127) (E8M0).
    """

    marks = ("_scale_inv", "_scale")
    ends: ClassVar[Mapping[str, str]] = {
        "weight": "",
        "inverse": "_scale_inv",
        "scale": "_scale",
        "zero": "_zero_point",
    }
    optional = frozenset({"inverse", "scale", "zero"})
    stored = STORED
    target = ""

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        self.shape = parts["weight"].shape
        scale = parts.get("inverse") or parts["scale"]
        self.block = find_block(self.shape, scale, settings)
        self.grain = self.block[0] if len(self.shape) == 2 else 1
        self.exponents = scale.dtype in ("U8", "F8_E8M0")

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        values = held["weight"][start:stop].float()
        if "zero" in held:
            values -= self._spread(held["zero"].float(), start, stop)
        scales = held["inverse"] if "inverse" in held else held["scale"]
        return values * self._spread(read_scales(scales, self.exponents), start, stop)

    def _spread(self, scales: Tensor, start: int, stop: int) -> Tensor:
        """Expand the scales to the values of rows `start` to `stop` - 1, or to a shape that broadcasts to these
        rows."""
        if scales.numel() == 1:
            return scales.reshape(())
        shape = (stop - start, *self.shape[1:])
        if len(self.shape) == 2:
            whole = scales.reshape(scales.shape[0], -1)
            return spread_blocks(whole[start // self.block[0] : -(-stop // self.block[0])], shape, self.block)
        whole = scales[start:stop]
        whole = whole.reshape(*whole.shape[:2], -1) if whole.ndim > 1 else whole[:, None, None]
        return spread_blocks(whole, shape, self.block)


class ScaledBeside(ScaledWeight):
    """float8 with block scales as in DeepSeek-V4 (2026): a tensor `scale` next to `weight`."""

    marks = (".scale",)
    ends: ClassVar[Mapping[str, str]] = {"weight": ".weight", "scale": ".scale"}
    optional = frozenset()
    stored = ("F8_E4M3", "F8_E5M2")
    target = ".weight"


CLASSES = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
"""Classes that store one plain integer or float per weight, scales and zero points. Other classes (Int4Tensor and the
like) have layouts for the kernels of a particular device."""


class TorchAO(ScaledWeight):
    """torchao's weights: (stored weight − zero point) · scale, one scale per row, group or tensor."""

    marks = ("._weight_qdata",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": "._weight_qdata",
        "scale": "._weight_scale",
        "zero": "._weight_zero_point",
        "input_scale": "._weight_act_quant_scale",
        "input_zero": "._weight_act_quant_zero_point",
    }
    optional = frozenset({"zero", "input_scale", "input_zero"})
    stored = ()  # CLASSES decide
    target = ".weight"

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        stem = (parts["weight"].name or "").removesuffix(self.marks[0])
        file, key = parts["weight"].file, f"{stem}.weight"
        said = read_metadata(file).get(key) or "{}"
        kind = parse_json(said, f"{file}: __metadata__.{key}", dict[str, Any]).get("_type")
        if kind not in CLASSES:
            found = f"is of torchao's class {shorten(str(kind))}, which is not read"
            raise refuse(parts["weight"], found, f"one of {', '.join(CLASSES)}")
        super().__init__(settings, parts, read)


def read_scales(scales: Tensor, exponents: bool) -> Tensor:
    """Convert scales to float32, from exponents of two (E8M0) or from floats."""
    if exponents:
        return torch.exp2(scales.view(torch.uint8).float() - 127)
    return scales.float()


def find_block(shape: tuple[int, ...], scale: Header, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Find how many rows and columns share a scale. Raises CheckpointError if scales and weight do not fit.

    A weight [256, 512] with scales [256] or [256, 1] has blocks of 1 × 512; with scales [256, 16], of 1 × 32; with
    scales [2, 4], of 128 × 128.
    """
    if not shape or scale.shape == () or set(scale.shape) == {1}:
        return 1, shape[-1] if shape else 1
    height, width = (*shape, 1)[:2] if len(shape) < 2 else shape[-2:]
    of_matrix = scale.shape[len(shape) - 2 :] if len(shape) > 2 else scale.shape
    rows, columns = (max(1, each) for each in (*of_matrix, 1, 1)[:2])
    for block in (*_stated_blocks(settings), (-(-height // rows), -(-width // columns))):
        if (-(-height // block[0]), -(-width // block[1])) == (rows, columns):
            return block
    raise refuse(scale, f"has shape {list(scale.shape)}, which scales no weight of shape {list(shape)}", "a whole file")


def _stated_blocks(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """List the block sizes that a quantization_config states. Shapes may not tell: two scales for 100 rows may mean
    blocks of 64 or 50."""
    groups = (settings.get("config_groups") or {}).values()
    stated = [
        settings.get("weight_block_size"),
        *((each.get("weights") or {}).get("block_structure") for each in groups),
    ]
    return [(int(each[0]), int(each[1])) for each in stated if isinstance(each, list) and len(each) == 2]
