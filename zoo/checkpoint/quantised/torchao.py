"""torchao's weights in safetensors: int8 and float8, by torchao's name of the tensor's class in the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.checkpoint.files import Header, read_metadata
from zoo.checkpoint.quantised.layout import refuse
from zoo.checkpoint.quantised.scaled import Scaled
from zoo.untrusted.json_file import parse_json
from zoo.untrusted.text import shorten

CLASSES = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
"""Classes whose data is a plain integer or float a weight, scales and zero points. The layouts of others (Int4Tensor
and its kin) follow the kernels of a device."""


class TorchAO(Scaled):
    """A weight times scales, after its zero points: those of a row, a group or the tensor."""

    marks = ("._weight_qdata",)
    ends: ClassVar[Mapping[str, str]] = {
        "weight": "._weight_qdata",
        "scale": "._weight_scale",
        "zero": "._weight_zero_point",
        "input_scale": "._weight_act_quant_scale",
        "input_zero": "._weight_act_quant_zero_point",
    }
    optional = frozenset({"zero", "input_scale", "input_zero"})
    target = ".weight"

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: Any) -> None:
        stem = (parts["weight"].name or "").removesuffix(self.marks[0])
        file, key = parts["weight"].file, f"{stem}.weight"
        said = read_metadata(file).get(key) or "{}"
        kind = parse_json(said, f"{file}: __metadata__.{key}", dict[str, Any]).get("_type")
        if kind not in CLASSES:
            found = f"is of torchao's class {shorten(str(kind))}, which is not read"
            raise refuse(parts["weight"], found, f"one of {', '.join(CLASSES)}")
        super().__init__(settings, parts, read)

    @classmethod
    def fits(cls, parts: Mapping[str, Header]) -> bool:
        return "weight" in parts and "scale" in parts
