"""Read torchao's int8 and float8 weights in safetensors, whose metadata names torchao's class of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.quantised.base import ReadTensor, refuse
from zoo.checkpoint.quantised.scaled import ScaledWeight
from zoo.checkpoint.tensor_files import Header, read_metadata
from zoo.untrusted.json_file import parse_json
from zoo.untrusted.printable import shorten

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
