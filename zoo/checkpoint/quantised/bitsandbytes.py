"""Read bitsandbytes' 4-bit (NF4, FP4) and 8-bit (LLM.int8) weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, ClassVar

from pydantic import Field

from zoo.checkpoint.quantised.base import QuantisedLayout, ReadTensor, refuse
from zoo.checkpoint.tensor_files import BITS, Header
from zoo.lazy import Tensor, torch
from zoo.untrusted.json_file import JsonShape, parse_json

STATE = ".quant_state.bitsandbytes__"
LONGEST = 2**16
"""Maximum bytes of the JSON state of a weight."""

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""NF4's values: quantiles of the normal distribution, one of them 0 (Dettmers et al., 2023, appendix E)."""

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

    @classmethod
    def encode(cls, weight: Tensor) -> tuple[FourBit, dict[str, Tensor]]:
        """Quantise a weight to NF4 in blocks of 64, with double quantisation: the absmax of blocks, minus their mean,
        in 8 bits in blocks of 256 (255 even levels, as torchao has; bitsandbytes' are uneven). Returns the layout and
        its tensors."""
        made, values = object.__new__(cls), torch.tensor(NF4)
        made.shape, made.block, made.nested_block = tuple(weight.shape), 64, 256
        blocks = _cut(weight.float(), made.block)
        absmax = blocks.abs().amax(1)
        scaled = blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
        codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2).to(torch.uint8).flatten()
        made.offset = float(absmax.mean())
        rest = _cut(absmax - made.offset, made.nested_block)
        nested = rest.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        levels = (rest / nested.unsqueeze(1) * 127).round().flatten()[: len(absmax)] + 127
        parts = {"weight": (codes[::2] << 4) | codes[1::2], "absmax": levels.to(torch.uint8), "values": values}
        return made, {**parts, "nested": nested, "nested_values": torch.arange(-127, 128) / 127}

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        width = prod(self.shape[1:])
        first, last = start * width, stop * width
        byte, values = torch.arange(256), held["values"].float()
        pairs = torch.stack([values[byte >> 4], values[byte & 15]], -1)
        packed = held["weight"].reshape(-1)[first // 2 : -(-last // 2)].view(torch.uint8)
        found = torch.nn.functional.embedding(packed.int(), pairs).flatten()[: last - first]
        begin, end = first // self.block, -(-last // self.block)
        scales = self._absmax(held, begin, end).repeat_interleave(self.block)[first - begin * self.block :]
        return found.mul_(scales[: last - first]).reshape(stop - start, *self.shape[1:])

    def _absmax(self, held: Mapping[str, Tensor], begin: int, end: int) -> Tensor:
        """Compute the scales of the blocks from `begin` to `end` - 1."""
        if not self.nested_block:
            return held["absmax"][begin:end].float()
        codes = held["absmax"][begin:end].to(torch.int64)
        outer = held["nested"].float()[torch.arange(begin, begin + len(codes)) // self.nested_block]
        return held["nested_values"].float()[codes] * outer + self.offset


def _cut(values: Tensor, size: int) -> Tensor:
    """Cut the flat values into blocks [N, size], the last one filled up with zeros."""
    flat = values.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


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

    @classmethod
    def encode(cls, weight: Tensor) -> tuple[EightBit, dict[str, Tensor]]:
        """Quantise a weight to int8 by row. Returns the layout and its tensors."""
        made = object.__new__(cls)
        made.shape = tuple(weight.shape)
        absmax = weight.float().abs().amax(-1)
        codes = weight.float() * (127 / absmax.clamp(min=torch.finfo(torch.float32).tiny)).unsqueeze(-1)
        return made, {"weight": codes.round().to(torch.int8), "absmax": absmax}

    def rows(self, held: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        return held["weight"][start:stop].float() * (held["absmax"][start:stop].float() / 127).unsqueeze(-1)
