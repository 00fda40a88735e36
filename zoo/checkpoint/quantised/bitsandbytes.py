"""Read bitsandbytes' 4-bit (NF4, FP4) and 8-bit (LLM.int8) weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from zoo.checkpoint.quantised.base import QuantisedLayout, ReadTensor, refuse
from zoo.checkpoint.tensor_files import BITS, Header
from zoo.lazy import torch
from zoo.untrusted.json_file import JsonShape, parse_json

if TYPE_CHECKING:
    from torch import Tensor

STATE = ".quant_state.bitsandbytes__"
LONGEST = 2**16
"""Maximum bytes of a weight's state."""

Size = Annotated[int, Field(ge=1)]


class State(JsonShape):
    """bitsandbytes' JSON state of a weight."""

    shape: Annotated[list[Size], Field(min_length=1, max_length=8)]
    blocksize: Size


class NestedState(State):
    """The state of a weight with double quantisation."""

    nested_blocksize: Size
    nested_offset: float


class FourBit(QuantisedLayout):
    """QLoRA's NF4, or FP4 (Dettmers et al., 2023): 4-bit codes in blocks of the flat weight, two a byte (high bits
    first).

    A weight is `quant_map[code]` times the absmax of its block. With double quantisation, absmax is itself coded in 8
    bits in blocks of its own, and `nested_offset` is added. The state with all sizes is JSON, as a tensor of bytes.
    """

    marks = (f"{STATE}nf4", f"{STATE}fp4")
    ends: ClassVar[Mapping[str, str]] = {
        "weight": "",
        "absmax": ".absmax",
        "values": ".quant_map",
        "nf4": f"{STATE}nf4",
        "fp4": f"{STATE}fp4",
        "nested": ".nested_absmax",
        "nested_values": ".nested_quant_map",
    }
    optional = frozenset({"nf4", "fp4", "nested", "nested_values"})
    target = ""
    grain = 2

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        header, nested = parts.get("nf4") or parts["fp4"], "nested" in parts
        text = bytes(read(header).reshape(-1).view(torch.uint8)[:LONGEST].tolist())
        state = parse_json(text, f"{header.file}: {header.name}", NestedState if nested else State)
        self.shape, self.block = tuple(state["shape"]), state["blocksize"]
        self.nested_block = state["nested_blocksize"] if nested else 0
        self.offset = float(state["nested_offset"]) if nested else 0.0
        packed = prod(parts["weight"].shape) * BITS.get(parts["weight"].dtype, 8) // 8
        if packed * 2 != prod(self.shape) + prod(self.shape) % 2:
            raise refuse(parts["weight"], f"has {packed:,} bytes for a weight {list(self.shape)}", "a whole file")
        self._check_scales(parts, -(-prod(self.shape) // self.block))

    def _check_scales(self, parts: Mapping[str, Header], blocks: int) -> None:
        """Raise CheckpointError unless every block has a scale."""
        wanted = {"absmax": blocks}
        if self.nested_block:
            wanted |= {"nested": -(-blocks // self.nested_block)}
        for role, least in wanted.items():
            if prod(parts[role].shape) < least:
                found = f"has shape {list(parts[role].shape)}, and there are {least:,} blocks"
                raise refuse(parts[role], found, "a whole file")

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        width = self.shape[1] if len(self.shape) > 1 else 1
        first, last = start * width, stop * width
        packed = held["weight"].reshape(-1)[first // 2 : -(-last // 2)].view(torch.uint8).to(torch.int64)
        codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: last - first]
        blocks = torch.arange(first, last) // self.block
        values = held["values"].float()[codes] * self._absmax(held)[blocks]
        return values.reshape(stop - start, *self.shape[1:])

    def _absmax(self, held: Mapping[str, Tensor]) -> Tensor:
        if not self.nested_block:
            return held["absmax"].float()
        codes = held["absmax"].to(torch.int64)
        outer = held["nested"].float()[torch.arange(len(codes)) // self.nested_block]
        return held["nested_values"].float()[codes] * outer + self.offset


class EightBit(QuantisedLayout):
    """LLM.int8 (Dettmers et al., 2022): int8 / 127 times the row's absmax (`SCB`), also in outlier columns."""

    marks = (".SCB",)
    ends: ClassVar[Mapping[str, str]] = {"weight": ".weight", "absmax": ".SCB", "form": ".weight_format"}
    optional = frozenset({"form"})

    def __init__(self, settings: Mapping[str, Any], parts: Mapping[str, Header], read: ReadTensor) -> None:
        self.shape = parts["weight"].shape
        if "form" in parts and int(read(parts["form"])) != 0:
            raise refuse(
                parts["form"], "is a layout of tiles", "weights by row, as bitsandbytes 0.43 and later save them"
            )

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        return held["weight"][start:stop].float() * (held["absmax"][start:stop].float() / 127).unsqueeze(-1)
